"""Studies: whole experiments that a single command reproduces, built from the library's own
parts.
"""
