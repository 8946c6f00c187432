"""Suites: what a steering does on a known kind of test, one file each, with intervals and whether the model stood it."""
