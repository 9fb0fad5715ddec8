"""What a file holds: looked at before it is read, by its first bytes, and unpacked within bounds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedsim.core.errors import InputError
from fedsim.core.files import cannot_read

# What a packed file may unpack to: a bomb of a few kilobytes must not fill the memory.
MAX_UNPACKED = 2 << 30

_ZIP = b"PK\x03\x04"
_UNPACKERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"),
}
_REFUSED = {
    b"\xd0\xcf\x11\xe0": "an old Excel or Office file; save the table as .xlsx, CSV or Parquet",
    b"$FL": "an SPSS file; export the table as CSV or Parquet",
    b"<stata": "a Stata file; export the table as CSV or Parquet",
    b"HEADER RECORD": "a SAS transport file; export the table as CSV or Parquet",
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc2\xea\x81\x60": "a SAS file; export it as CSV",
    b"\x89HDF": "an HDF5 file; export the table as CSV or Parquet",
    b"ARROW1": "an Arrow (Feather) file; save the table as Parquet",
    b"FEA1": "a Feather file; save the table as Parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV or Parquet",
    b"%PDF": "a PDF; export the table as CSV or Parquet",
    b"\x89PNG": "one image; name the folder of all images",
    b"\xff\xd8\xff": "one image; name the folder of all images",
    b"\x93NUMPY": "one NumPy array; save features and label together with numpy.savez (.npz)",
    b"RDX": "an R file; export the table as CSV or Parquet",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x7fELF": "a program",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself; run `git lfs pull`",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML; export the table as CSV or Parquet",
    b"{": "JSON; export the table as CSV or Parquet",
    b"[{": "JSON; export the table as CSV or Parquet",
}


def check_path(path: Path) -> None:
    """Refuse what is neither a file nor a folder: nothing that could block or never end is opened.

    Raises:
        InputError: there is nothing at ``path``, or it is a pipe, a device, a socket, a loop of links.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"cannot read {path}: it is a pipe, device or socket; name a file")


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the one-sentence error for what the system says about ``path``."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"cannot read {path}: there is no such file")
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"cannot read {path}: {error.strerror.lower()}")
    try:
        return cannot_read(path, error)
    except (OSError, ValueError):  # a path that the system cannot even ask about
        return InputError(f"cannot read {str(path)!r}: {error}")


def head(path: Path, size: int = 64) -> bytes:
    """Return the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)


def is_zip(path: Path) -> bool:
    """Whether the file is a zip archive, as .xlsx and .npz are."""
    return head(path, 4) == _ZIP


def content(path: Path) -> bytes:
    """Return what a text table's file holds, unpacked where it is packed.

    Raises:
        InputError: it unpacks to more than MAX_UNPACKED bytes, or is a kind of file that is no text table.
    """
    start = head(path)
    for mark, opened in _UNPACKERS.items():
        if start.startswith(mark):
            with opened(path) as file:
                return _text_only(path, _bounded(file, path))
    if start.startswith(_ZIP):
        return _text_only(path, _only_member(path))
    return _text_only(path, path.read_bytes())


def _bounded(file: Any, path: Path) -> bytes:
    try:
        parts, total = [], 0
        while part := file.read(1 << 20):
            total += len(part)
            if total > MAX_UNPACKED:
                raise InputError(f"{path}: it unpacks to more than {MAX_UNPACKED >> 20} MiB; unpack it first")
            parts.append(part)
        return b"".join(parts)
    except (EOFError, OSError, ValueError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: the packed file is damaged ({error})") from error


def check_archive(path: Path) -> list[str]:
    """Return the names of a zip archive's members, none of which unpacks to too much.

    Raises:
        InputError: the archive is damaged, encrypted, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"cannot read {path}: the archive is damaged ({error})") from error
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise InputError(f"{path}: it unpacks to more than {MAX_UNPACKED >> 20} MiB; unpack it first")
    if any(member.flag_bits & 1 for member in members):
        raise InputError(f"{path}: the archive is encrypted; unpack it first")
    return [member.filename for member in members if not member.is_dir()]


def _only_member(path: Path) -> bytes:
    names = [name for name in check_archive(path) if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise InputError(f"{path}: this is a zip archive of {len(names)} files; unpack it and name the table")
    with zipfile.ZipFile(path) as archive, archive.open(names[0]) as file:
        return _bounded(file, path)


def _text_only(path: Path, text: bytes) -> bytes:
    """Refuse bytes that are no text, and texts that are no table."""
    start = text[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    for mark, what in _REFUSED.items():
        if start[: len(mark)].lower() == mark.lower():
            raise InputError(f"{path}: this is {what}")
    wide = text.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_wide(text)
    if not wide and b"\x00" in text[: 1 << 20]:
        raise InputError(f"{path}: this is no text but binary data; export the table as CSV or Parquet")
    return text


def _looks_wide(text: bytes) -> bool:
    """Whether every second byte of the beginning is zero, as in Latin text in UTF-16 without a mark."""
    start = text[:512]
    return len(start) >= 4 and any(not any(start[parity::2]) for parity in (0, 1))


def decode(path: Path, text: bytes, encoding: str | None) -> tuple[bytes, list[str]]:
    """Return ``text`` as UTF-8 bytes without a byte order mark, and notices.

    encoding: as declared (`data.encoding`); None: UTF-8, UTF-16 or UTF-32 by their marks, else Windows-1252.

    Raises:
        InputError: there is no such encoding, or the text is not in it.
    """
    if encoding is not None:
        try:
            return text.decode(encoding).removeprefix("\ufeff").encode(), []
        except LookupError:
            raise InputError(
                f"data.encoding = '{encoding}': no such encoding; try 'utf-8', 'cp1252'"
            ) from None
        except UnicodeError as error:
            raise InputError(f"{path}: data.encoding = '{encoding}' does not fit: {error}") from error
    for mark, name in _MARKS.items():
        if text.startswith(mark):
            try:
                return text.decode(name).encode(), []
            except UnicodeError as error:
                raise InputError(f"cannot read {path}: damaged {name} text ({error})") from error
    if _looks_wide(text):
        little = not any(text[1:512:2])
        return text.decode("utf-16-le" if little else "utf-16-be", errors="replace").encode(), []
    try:
        text.decode("utf-8")
        return text, []
    except UnicodeDecodeError:
        notice = f"{path.name} is not UTF-8; it was read as Windows-1252 (data.encoding decides)"
        return text.decode("cp1252", errors="replace").encode(), [notice]


_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
