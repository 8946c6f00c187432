"""One file per layout of contrast data; the file's name is the layout's. `base.Reader` says what a reader is.

A package of somebody else's adds one with an entry point in the group `steerlab.readers`.
"""
