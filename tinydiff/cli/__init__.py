"""The command line: entry.py reads it, the other files are its commands; flags.py has those of `train`."""

from tinydiff.cli.entry import main

__all__ = ["main"]
