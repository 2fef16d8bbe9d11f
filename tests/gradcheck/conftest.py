"""Puts the catalogue of planted bugs and the list of right operations on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
