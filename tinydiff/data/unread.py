"""Data sets in forms that are not read, and what to do with them."""

from __future__ import annotations

import re
from pathlib import Path

_ARRAYS = "np.savez('new.npz', images=x, labels=y) with x as uint8 (N, H, W, C)"
_KINDS = {
    "mat": ("MATLAB's format", f"load it with scipy.io.loadmat and save it as {_ARRAYS}"),
    "h5|hdf5|hdf|he5": ("HDF5", f"load it with h5py and save it as {_ARRAYS}"),
    "parquet|arrow|feather|ipc": ("a table of Arrow or Parquet", f"save its pictures as files, or as {_ARRAYS}"),
    "tfrecords?|array_record": ("records of TensorFlow", f"save their pictures as files, or as {_ARRAYS}"),
    "lmdb|mdb|sqlite3?|db": ("a database", f"save its pictures as files, or as {_ARRAYS}"),
    "pkl|pickle|pt|pth|joblib|ckpt": (
        "a pickle, which can run code when it is opened",
        f"save what is in it as {_ARRAYS}",
    ),
    "zarr|nc|ubj|beton|webdataset": ("a format of arrays", f"save it as {_ARRAYS}"),
    "mp4|mov|avi|mkv|webm": ("a film", "save its frames as pictures, as by ffmpeg -i FILM FOLDER/%06d.png"),
    "jsonl?|xlsx?|ods": ("a table", f"save the pictures that it holds or names as files, or as {_ARRAYS}"),
    "csv|tsv": (
        "text",
        "for rows of a label and pixels, x = np.loadtxt(FILE, np.uint8, delimiter=',', skiprows=1) and then "
        "np.savez('new.npz', images=x[:, 1:], labels=x[:, 0])",
    ),
}


def unread(path: Path) -> str | None:
    """What a file of a data set is, by its name, and how to convert it; None for no known kind."""
    for endings, (what, how) in _KINDS.items():
        if re.search(rf"\.({endings})(-\d+-of-\d+)?$", path.name.lower()):
            return f"is {what}, and is not read; {how}"
    return None


def first_unread(folders: list[Path]) -> tuple[Path, str] | None:
    """The first such file in some folders, texts last, and the sentence on it."""
    found = [(path, said) for folder in folders for path in sorted(folder.iterdir()) if (said := unread(path))]
    return min(found, key=lambda each: "is text" in each[1], default=None)
