"""Global models that other software saved, as what parties exchange (`fedsim.core.models.weights`).

    .safetensors         by parameter name
    .pt, .pth, .bin      a state_dict, read with ``weights_only``; or a dictionary that holds one, as
                         NVFlare's persistor ('model'), Lightning ('state_dict'), OpenFL
                         ('model_state_dict', by `fx model save`) and many scripts write it
    .npz                 by name, or in the state_dict's order (``np.savez(file, *ndarrays)``, as with Flower)
    .onnx                the graph's initializers; needs `pip install 'fedsim[onnx]'`

Nothing that a file holds is run: a pickle of anything but tensors is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import cannot_read
from fedsim.core.imports import short
from fedsim.core.models.weights import exchanged

INSIDE = ("model", "state_dict", "model_state_dict", "net", "weights")
"""Keys below which a checkpoint may hold its state_dict."""

_POSITIONAL = re.compile(r"arr_\d+")


def round_files(place: Path, last: int) -> dict[int, Path]:
    """Return the files of saved models by round t, increasing: the last number of a file's name.

    place: a folder of them, or one file. last: the round of a single file without a number.

    Raises:
        InputError: there is none, two are of one round, or one of several has no number.
    """
    if not place.is_dir():
        if not place.exists():
            raise InputError(f"--models {place}: there is no such file or folder")
        return {_number(place, last): place}
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in _READERS and file.is_file())
    if not files:
        raise InputError(f"--models {place}: no model is in it; it may hold {', '.join(_READERS)} files")
    rounds: dict[int, Path] = {}
    for file in files:
        number = _number(file, last if len(files) == 1 else -1)
        if number < 0:
            raise InputError(
                f"{file}: which round is it of? put the round's number into the name, as in round-003.pt, or "
                "name this one file with --models"
            )
        other = rounds.setdefault(number, file)
        if other is not file:
            raise InputError(f"{other} and {file.name} are both of round {number}; keep one")
    return dict(sorted(rounds.items()))


def _number(file: Path, otherwise: int) -> int:
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else otherwise


def read_weights(file: Path, module: nn.Module) -> dict[str, np.ndarray]:
    """Read a saved model as float32 arrays by the names of ``module``'s exchanged state, in its order.

    A prefix that all names share, as of DistributedDataParallel ('module.') or Opacus ('_module.'), is taken
    off. Integer buffers, which the architecture decides, are passed over.

    Raises:
        InputError: the file cannot be read, or does not hold the weights of this architecture.
    """
    if file.suffix.lower() not in _READERS:
        raise InputError(f"{file}: no format that is known; save it as one of {', '.join(_READERS)}")
    try:
        given = _READERS[file.suffix.lower()](file)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"cannot read {file}: it holds Python objects, not weights alone; save model.state_dict()"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise cannot_read(file, error if isinstance(error, OSError) else ValueError(short(error))) from error
    if given and all(_POSITIONAL.fullmatch(name) for name in given):
        given = _by_position(file, given, module)
    return _fitted(file, given, module)


def _fitted(file: Path, given: Mapping[str, np.ndarray], module: nn.Module) -> dict[str, np.ndarray]:
    wanted = {name: tuple(value.shape) for name, value in exchanged(module).items()}
    prefix = _prefix(given, wanted)
    weights = {}
    for name, shape in wanted.items():
        if prefix + name not in given:
            raise InputError(f"{file}: there is no '{name}', which the model has{suggestion(name, given)}")
        array = np.asarray(given[prefix + name])
        if array.shape != shape:
            raise InputError(f"{file}: '{prefix + name}' is {array.shape}, the model's '{name}' is {shape}")
        weights[name] = array.astype(np.float32)
    left = set(given) - {prefix + name for name in (*wanted, *module.state_dict())}
    if left:
        raise InputError(
            f"{file}: it holds '{min(left)}', which the model has not{suggestion(min(left), wanted)}"
        )
    return weights


def _prefix(given: Mapping[str, np.ndarray], wanted: Mapping[str, object]) -> str:
    first = next(iter(wanted))
    prefixes = sorted((name.removesuffix(first) for name in given if name.endswith(first)), key=len)
    return next((p for p in prefixes if all(p + name in given for name in wanted)), "")


def _by_position(file: Path, given: Mapping[str, np.ndarray], module: nn.Module) -> dict[str, np.ndarray]:
    arrays = [given[f"arr_{k}"] for k in range(len(given))]
    for names in (list(module.state_dict()), list(exchanged(module))):
        if len(names) == len(arrays):
            return dict(zip(names, arrays, strict=True))
    raise InputError(f"{file}: it holds {len(arrays)} arrays, the model has {len(module.state_dict())}")


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _arrays(load_file(file))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _checkpoint(file: Path) -> dict[str, np.ndarray]:
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    for _ in range(2):  # a checkpoint's 'model' may hold a 'state_dict' again
        inner = next((key for key in INSIDE if isinstance(_get(loaded, key), Mapping)), None)
        loaded = loaded if inner is None else loaded[inner]
    if not isinstance(loaded, Mapping) or not all(hasattr(value, "shape") for value in loaded.values()):
        raise ValueError(f"it holds no state_dict, at its top or below {', '.join(map(repr, INSIDE))}")
    return _arrays(loaded)


def _get(loaded: object, key: str) -> object:
    return loaded.get(key) if isinstance(loaded, Mapping) else None


def _arrays(tensors: Mapping[str, torch.Tensor | np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays that NumPy knows the type of: half precision becomes float32."""
    return {
        str(name): torch.as_tensor(value).detach().to(torch.float32).numpy()
        for name, value in tensors.items()
    }


def _npz(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _onnx(file: Path) -> dict[str, np.ndarray]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise InputError(f"{file}: reading ONNX needs onnx: pip install 'fedsim[onnx]'") from None
    try:
        graph = onnx.load(file).graph
    except Exception as error:  # protobuf raises types of its own
        raise ValueError(short(error)) from error
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _safetensors,
    ".pt": _checkpoint,
    ".pth": _checkpoint,
    ".bin": _checkpoint,
    ".npz": _npz,
    ".onnx": _onnx,
}
"""Suffix → what reads such a file."""
