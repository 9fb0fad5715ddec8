"""Where a named data set's files come from: a local folder, or a download, each checked by its hash."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedsim.core import folders
from fedsim.core.data.schema import Schema
from fedsim.core.data.table import sha256
from fedsim.core.errors import InputError
from fedsim.core.files import cannot_read, write_text


@dataclass(frozen=True)
class File:
    """One published file.

    url: where it is downloaded from; None where its publisher wants a login.
    sha256: of the file; None pins the first download's hash in a file beside it.
    content_sha256: of what is packed in it. It is accepted as well, since publishers pack the same content
        anew (other compression, other time stamps).
    member: path of that content in the archive, '/'-separated through nested archives; '' for plain gzip.
    """

    name: str
    url: str | None
    sha256: str | None
    content_sha256: str | None = None
    member: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A named real data set.

    folder: its place inside a local data folder, unless the files lie there directly.
    load: reads the files, in the order of ``files``, into a frame with the schema's columns.
    """

    name: str
    title: str
    sectors: tuple[str, ...]
    record: str
    rows: int
    licence: str
    origin: str
    schema: Schema
    load: Callable[[list[Path]], pd.DataFrame]
    folder: str = ""
    files: tuple[File, ...] = ()
    notes: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the records come with scikit-learn, so that nothing is downloaded."""
        return not self.files


def obtain(data: DataSet, data_dir: Path | None) -> list[Path]:
    """Return the set's files, in order: from ``data_dir``, the folder FEDSIM_DATA names, or a download.

    Raises:
        InputError: ``data_dir`` is no folder, a file has another hash, or cannot be had.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"--data-dir {data_dir}: there is no such folder")
    local = [folder for folder in (data_dir, folders.named_data()) if folder is not None]
    return [_obtain_file(data, file, local) for file in data.files]


def _obtain_file(data: DataSet, file: File, local: list[Path]) -> Path:
    for folder in local:
        for path in (folder / data.folder / file.name, folder / file.name):
            if path.is_file():
                verify(path, file)
                return path
    path = _download(data, file)
    verify(path, file)
    return path


def verify(path: Path, file: File) -> None:
    """Check that ``path`` is the published file, or another packing of the same content.

    Raises:
        InputError: naming the file and both hashes.
    """
    if file.sha256 is None:
        return
    digest = sha256(path)
    if digest == file.sha256 or (file.content_sha256 and _content_sha256(path, file) == file.content_sha256):
        return
    raise InputError(
        f"{path}: SHA-256 is {digest}, expected {file.sha256}; the file is damaged or another version, "
        "delete it and fetch it again"
    )


def _content_sha256(path: Path, file: File) -> str | None:
    try:
        return hashlib.sha256(unpack(path, file.member)).hexdigest()
    except InputError:
        return None


def unpack(path: Path, member: tuple[str, ...] = ()) -> bytes:
    """Return the content of a gzip file, or a member of a zip (through nested zips) or gzipped tar archive.

    Raises:
        InputError: the archive is corrupt or has no such member.
    """
    try:
        if not member:
            return gzip.decompress(path.read_bytes())
        if path.suffix == ".tgz":
            return _unpack_tar(path, member[0])
        content = path.read_bytes()
        for name in member:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read(name)
        return content
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise cannot_read(path, error) from error


def _unpack_tar(path: Path, member: str) -> bytes:
    with tarfile.open(path) as archive:
        stream = archive.extractfile(member)
        if stream is None:
            raise KeyError(member)
        return stream.read()


def cache_folder(data: DataSet) -> Path:
    """Return where downloads of this set are kept."""
    return folders.downloads() / (data.folder or data.name)


def _download(data: DataSet, file: File) -> Path:
    """Return the downloaded file; one that is in the cache already is not fetched again."""
    import pooch

    folder = cache_folder(data)
    place = f"put {file.name} into <folder>/{data.folder}/ and name <folder> with --data-dir or FEDSIM_DATA"
    if file.url is None:
        raise InputError(f"{data.name}: {file.name} cannot be downloaded; get it from {data.origin}, {place}")
    # A file with a content hash is checked by `verify`, which knows both; pooch would refuse a repacked one.
    pooch.get_logger().setLevel("WARNING")
    known = None if file.content_sha256 else file.sha256 or _pinned(folder / file.name)
    try:
        path = Path(pooch.retrieve(file.url, known, fname=file.name, path=folder))
    except ValueError as error:
        raise InputError(f"{file.url}: the download does not have SHA-256 {known}; {place}") from error
    except OSError as error:  # requests' exceptions are OSErrors
        raise InputError(
            f"{data.name}: cannot download {file.url} ({type(error).__name__}); {place}"
        ) from error
    if file.sha256 is None:
        _pin(path)
    return path


def _pinned(path: Path) -> str | None:
    """Return the hash that this file had when it was first downloaded."""
    pin = path.with_name(f"{path.name}.sha256")
    return pin.read_text(encoding="utf-8").strip() if pin.exists() else None


def _pin(path: Path) -> None:
    pin = path.with_name(f"{path.name}.sha256")
    if not pin.exists():
        write_text(pin, f"{sha256(path)}\n")
