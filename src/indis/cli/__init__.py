"""The command line: one module a command, each a typed dataclass of arguments with a ``run``
method.
"""
