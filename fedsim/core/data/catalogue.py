"""Named real data sets: list them, fetch their files, load their tables."""

from __future__ import annotations

from pathlib import Path

from fedsim.core.data import table, text
from fedsim.core.data.sets import SETS
from fedsim.core.data.sources import DataSet, File, obtain
from fedsim.core.data.table import Table, frame_sha256, sha256
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import DataSettings

DEFAULT = "diabetes-progression"

__all__ = ["DEFAULT", "DataSet", "File", "fetch", "get", "load", "names", "open_table"]


def names() -> list[str]:
    """Return the names of all sets, the embedded ones first."""
    return list(SETS)


def get(name: str) -> DataSet:
    """Return the set called ``name``.

    Raises:
        InputError: there is no such set; the nearest name is suggested.
    """
    if name not in SETS:
        raise InputError(f"data.name = '{name}': no such data set{suggestion(name, SETS)}")
    return SETS[name]


def fetch(name: str, data_dir: Path | None = None) -> list[Path]:
    """Return the set's files, downloaded where they are not yet at hand; none for an embedded set.

    Raises:
        InputError: see `get` and `sources.obtain`.
    """
    return obtain(get(name), data_dir)


def load(name: str, data_dir: Path | None = None) -> Table:
    """Return the set's table with its complete declared schema.

    Raises:
        InputError: see `fetch`; or the files do not hold the records that were published.
    """
    data = get(name)
    paths = obtain(data, data_dir)
    try:
        frame = data.load(paths)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{name}: {paths[0] if paths else 'scikit-learn'} has another layout ({error})"
        ) from error
    if len(frame) != data.rows:
        where = ", ".join(map(str, paths)) or "scikit-learn"
        raise InputError(f"{name}: {len(frame)} records were read from {where}, expected {data.rows}")
    hashes = {path.name: sha256(path) for path in paths} or {f"{name} (embedded)": frame_sha256(frame)}
    return Table(frame, data.schema, name, hashes)


def open_table(settings: DataSettings, data_dir: Path | None = None) -> Table:
    """Return the table that the scenario names: its own files, a named set, or the default set.

    Raises:
        InputError: see `load` and `table.read`.
    """
    if settings.text is not None:
        return text.read(settings)
    if settings.path is not None:
        return table.read(settings)
    return load(settings.name or DEFAULT, data_dir)
