"""Commands of whole experiments: ``indis bench ...``."""
