"""Where fedsim keeps what it did not make for anyone in particular: one rule for every cache and download.

FEDSIM_CACHE   a folder that holds fedsim's subfolders 'shadows' and 'data'; default: the system's place for
               caches (on Linux $XDG_CACHE_HOME/fedsim, else ~/.cache/fedsim). A URL that fsspec knows, as
               s3://bucket/folder, holds 'shadows' alone: data sets are read from files
FEDSIM_DATA    a folder with data sets of the person's own, which is only ever read

Whatever else lies in such a folder is not fedsim's, and is neither changed nor removed.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

_LOCAL = "file://"


def cache() -> Path:
    """Return the folder of this machine that holds fedsim's caches; it need not exist."""
    named = os.environ.get("FEDSIM_CACHE")
    if not named or cache_url() is not None:
        return platformdirs.user_cache_path("fedsim", appauthor=False)
    return Path(named.removeprefix(_LOCAL)).expanduser()


def cache_url() -> str | None:
    """Return the URL that FEDSIM_CACHE names, None where it names a folder of this machine, or nothing."""
    named = os.environ.get("FEDSIM_CACHE", "")
    return named if "://" in named and not named.startswith(_LOCAL) else None


def downloads() -> Path:
    """Return the folder of downloaded data sets; it need not exist."""
    return cache() / "data"


def flower_run(flower_id: int) -> Path:
    """Return the folder of a run that `flwr run` of fedsim's own app makes where none is named.

    flower_id: Flower's number of its run, which server and clients know alike
    """
    return platformdirs.user_data_path("fedsim", appauthor=False) / "flower" / f"run-{flower_id}"


def named_data() -> Path | None:
    """Return the person's own folder of data sets, None where none is named."""
    named = os.environ.get("FEDSIM_DATA")
    return Path(named).expanduser() if named else None
