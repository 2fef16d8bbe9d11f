"""The version of tinydiff."""

__version__ = "0.1.0"
