"""A user's own images and arrays: .npz and .pt files, what a function of theirs returns, folders of PNGs."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data import contents
from fedsim.core.data.schema import Bounds
from fedsim.core.errors import InputError
from fedsim.core.imports import load, short
from fedsim.core.scenario.settings import DataSettings

MAX_PIXELS = 4 << 30
_IMAGES = (".png",)
_SUFFIXES_OF_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")


@dataclass(frozen=True)
class Pixels:
    """A table whose features are images.

    frame: pixels in row-major order, label and keys. shape: (channels, height, width). names: the pixels'
    columns. bounds: public, from the type of the pixels.
    """

    frame: pd.DataFrame
    shape: tuple[int, int, int] | None
    names: tuple[str, ...]
    bounds: Bounds | None
    notices: list[str]


def of_arrays(path: Path | str, arrays: Mapping[str, np.ndarray], settings: DataSettings) -> Pixels:
    """Return arrays of one length as a table: label, party and person by their names, the rest is features.

    path: what errors call them

    An array of (n, height, width), (n, channels, height, width) or (n, height, width, channels) that is the
    only feature is an image; every other one is flattened into columns 'name[0]', 'name[1]', …

    Raises:
        InputError: an array is missing, is no table's column, or the arrays differ in length.
    """
    for name, array in arrays.items():
        if array.ndim == 0 or array.dtype.kind not in "biufUS":
            raise InputError(f"{path}: array '{name}' ({array.dtype}, {array.ndim}-d) is no table's column")
    keys = {name for name in (settings.label, settings.party, settings.person) if name is not None}
    for name in keys:
        if name not in arrays:
            raise InputError(f"{path}: there is no array '{name}'; it holds {', '.join(sorted(arrays))}")
    lengths = {name: len(array) for name, array in arrays.items()}
    n = lengths[settings.label or ""]
    for name, length in lengths.items():
        if length != n:
            raise InputError(f"{path}: array '{name}' has {length} records, '{settings.label}' has {n}")
    columns = {name: _key(path, name, arrays[name]) for name in keys}
    features = {name: array for name, array in arrays.items() if name not in keys}
    if not features:
        raise InputError(f"{path}: there is no array beside '{settings.label}', so no features")
    return _columns(path, columns, features, settings)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file.

    Raises:
        InputError: the file is damaged, or holds Python objects.
    """
    contents.check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        reason = "it holds Python objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise InputError(f"cannot read {path}: {reason}") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a .pt file that holds a dictionary of tensors; nothing else of it is unpickled.

    Raises:
        InputError: the file is damaged, or holds anything but tensors by name.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"cannot read {path}: it holds Python objects; save a dict of tensors") from error
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        raise InputError(f"cannot read {path}: {short(error)}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: it holds {type(loaded).__name__}; save a dict of tensors, by name")
    return {str(name): tensor.detach().numpy() for name, tensor in loaded.items()}


def call(reference: str, folder: str | None) -> pd.DataFrame | dict[str, np.ndarray]:
    """Return what the user's function 'module:callable' returns: a DataFrame, or arrays by name.

    Raises:
        InputError: it cannot be imported, raises, or returns anything else.
    """
    where = f"data.path = '{reference}'"
    function = load(reference, folder, where)
    try:
        made = function()
        if isinstance(made, pd.DataFrame):
            return made
        if isinstance(made, Mapping):
            return {str(name): np.asarray(array) for name, array in made.items()}
    except Exception as error:
        raise InputError(f"{where}: calling it failed: {short(error)}") from error
    kind = type(made).__name__
    raise InputError(f"{where}: it returned {kind}; it must return a pandas DataFrame, or arrays by name")


def _key(path: Path | str, name: str, array: np.ndarray) -> pd.Series:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(
            f"{path}: array '{name}' is {array.shape}; a label, party or person is one value a record"
        )
    values = array.astype(str) if array.dtype.kind in "US" else array
    return pd.Series(values)


def _columns(
    path: Path | str, keys: dict[str, pd.Series], features: dict[str, np.ndarray], settings: DataSettings
) -> Pixels:
    shape = None
    if len(features) == 1 and settings.shape is None:
        name, array = next(iter(features.items()))
        array, shape = _image(array)
        features = {name: array}
    parts, names = [pd.DataFrame(keys)], []
    for name, array in features.items():
        flat = array.reshape(len(array), -1)
        titles = (
            [name]
            if flat.shape[1] == 1 and array.ndim == 1
            else [f"{name}[{k}]" for k in range(flat.shape[1])]
        )
        parts.append(pd.DataFrame(flat, columns=pd.Index(titles, dtype=object)))
        names += titles
    bytes_only = all(array.dtype == np.uint8 for array in features.values())
    is_image = shape is not None or settings.shape is not None
    bounds = (0.0, 255.0) if bytes_only and is_image else (0.0, 1.0) if is_image and shape else None
    return Pixels(pd.concat(parts, axis=1), shape, tuple(names), bounds, [])


def _image(array: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int] | None]:
    """Return the array with channels first, and (channels, height, width); None where it is no image."""
    if array.ndim == 3:
        return array[:, None], (1, array.shape[1], array.shape[2])
    if array.ndim == 4:
        if array.shape[-1] in (1, 3, 4) and array.shape[1] not in (1, 3):
            array = np.moveaxis(array, -1, 1)
        return array, (array.shape[1], array.shape[2], array.shape[3])
    return array, None


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES and path.is_file())


def labels_beside(folder: Path) -> Path | None:
    """Return the table that lies in the folder of images, None where there is none.

    Raises:
        InputError: there are several.
    """
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES_OF_TABLES)
    if len(tables) > 1:
        raise InputError(
            f"{folder}: {tables[0].name} and {tables[1].name}: which is the table of labels? keep one"
        )
    return tables[0] if tables else None


def read_images(folder: Path, table: pd.DataFrame | None, settings: DataSettings) -> Pixels:
    """Read a folder of PNGs of one size: grey ones have 1 channel, the others 3.

    table: one row an image; the column whose values are all names of files says which. None: the label is
        the name of the image's folder.

    Raises:
        InputError: a file is missing or damaged, sizes differ, or no column names the files.
    """
    files = image_files(folder)
    if table is None:
        keys = pd.DataFrame({settings.label: [file.parent.name for file in files]})
        chosen, ignored = files, []
    else:
        column = _naming(folder, table, files)
        names = [str(name).strip() for name in table[column]]
        chosen = [_place(folder, name, files) for name in names]
        wanted = [
            n for n in (settings.label, settings.party, settings.person) if n is not None and n in table
        ]
        keys = table[wanted].reset_index(drop=True)
        ignored = [name for name in table if name not in (column, *wanted)]
    pixels = _stack(chosen)
    titles = tuple(f"pixel {k}" for k in range(pixels[0].size))
    flat = pd.DataFrame(pixels.reshape(len(pixels), -1), columns=pd.Index(titles, dtype=object))
    notices = [f"{folder.name}: column '{name}' is ignored: the features are the images" for name in ignored]
    _, channels, height, width = pixels.shape
    return Pixels(pd.concat([keys, flat], axis=1), (channels, height, width), titles, (0.0, 255.0), notices)


def _naming(folder: Path, table: pd.DataFrame, files: list[Path]) -> str:
    known = {file.name for file in files} | {file.stem for file in files}
    for name in table:
        cells = [Path(str(cell).strip()).name for cell in table[name].iloc[:200]]
        if sum(cell in known for cell in cells) * 2 > len(cells):
            return str(name)
    raise InputError(f"{folder}: no column of the table of labels names the image files")


def _place(folder: Path, name: str, files: list[Path]) -> Path:
    for candidate in (folder / name, folder / f"{name}.png"):
        if candidate.is_file() and folder.resolve() in candidate.resolve().parents:
            return candidate
    match = [file for file in files if name in (file.name, file.stem)]
    if len(match) != 1:
        raise InputError(f"{folder}: the table names the image '{name}', of which there are {len(match)}")
    return match[0]


def _stack(files: list[Path]) -> np.ndarray:
    """Return (n, channels, height, width) uint8."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError(
            "reading PNGs needs Pillow: pip install 'fedsim[images]', or save arrays as .npz"
        ) from None
    arrays: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                if arrays and image.size != arrays[0].shape[1::-1]:
                    raise InputError(
                        f"{file}: {image.size[0]}x{image.size[1]} pixels, the others have "
                        f"{arrays[0].shape[1]}x{arrays[0].shape[0]}; bring them to one size"
                    )
                if image.size[0] * image.size[1] * len(files) * 3 > MAX_PIXELS:
                    raise InputError(
                        f"{file}: {len(files)} images of {image.size} are too many pixels; shrink them"
                    )
                grey = image.mode in ("1", "L", "LA", "I;16")
                arrays.append(np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8))
        except (
            OSError,
            UnidentifiedImageError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            raise InputError(f"cannot read {file}: {error}") from error
    if len({array.ndim for array in arrays}) > 1:
        raise InputError(f"{files[0].parent}: some images are grey and some have colours; convert them alike")
    stacked = np.stack(arrays)
    return stacked[:, None] if stacked.ndim == 3 else np.moveaxis(stacked, -1, 1)
