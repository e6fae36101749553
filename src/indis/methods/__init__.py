"""Methods: one file a paper, each a config and a ``fit``."""
