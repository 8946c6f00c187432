"""The contract that every edit, method and engine keeps, as tests that anybody can run.

``pytest --pyargs steerlab.testing`` finds all edits and all methods that are installed, third parties' included, and
holds them to the laws; ``--steerlab-methods NAME`` picks some. A new file in `steerlab/methods`, or a package with an
entry point in the group `steerlab.methods`, is under the contract without a line of test code.
"""
