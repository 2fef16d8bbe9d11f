"""The folder of a run as all ranks but the first see it: they read what is there, and leave the writing to rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinydiff.errors import InputError
from tinydiff.runs import checkpoint
from tinydiff.runs.folder import RunFolder


class Witness(RunFolder):
    """Writes nothing, and has nothing against what rank 0 may do. path: the folder, on a file system that all ranks share."""

    locked = True  # by rank 0

    def check_free(self, force: bool = False, called: Any = None) -> None:
        """Nothing: rank 0 looks. force, called: as for `RunFolder.check_free`."""

    def check_seen(self) -> None:
        """InputError unless what rank 0 has written is here."""
        if checkpoint.find_own(self.path) is None:
            raise InputError(f"the run that rank 0 has in {Path(self.path).absolute()} is not to be seen; all ranks need one "
                             "file system, and the same working directory")  # fmt: skip

    def _nothing(self, *arguments: Any, **options: Any) -> None:
        """What rank 0 does."""

    acquire = begin = begun = create = put_in_order = rewrite_config = open_log = log = flush = close = _nothing
    save_profile = _nothing
