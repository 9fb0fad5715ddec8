"""What parties exchange of a module: its floating-point state, as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def exchanged(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the module's state that parties exchange, by name, in the module's order.

    Integers and truth values are constants of the architecture, which a mean or a server's optimizer would
    bend: they stay as the module's factory made them. Of a tensor with several names (tied weights) the first
    stands for all: what shapes an update would be undone by an alias that was sent as it was.
    """
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, value in module.state_dict().items():
        place = (value.data_ptr(), value.storage_offset(), value.shape)
        if value.is_floating_point() and (place not in seen or value.numel() == 0):
            seen.add(place)
            state[name] = value
    return state


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of what is `exchanged`, as float32 arrays by name, in the module's order."""
    return {
        name: value.detach().cpu().numpy().astype(np.float32) for name, value in exchanged(module).items()
    }


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray | Tensor]) -> None:
    """Overwrite what the module `exchanged` with ``weights``, as returned by `weights_of`.

    Raises:
        ValueError: names or shapes differ from the module's.
    """
    state = exchanged(module)
    wanted = {name: tuple(value.shape) for name, value in state.items()}
    given = {name: tuple(np.shape(array)) for name, array in weights.items()}
    if given != wanted:
        raise ValueError(f"weights are {given}, the model's are {wanted}")
    with torch.no_grad():
        for name, value in state.items():
            new = weights[name]
            if isinstance(new, np.ndarray) and value.device.type == "cpu":
                np.copyto(value.numpy(), new)  # no tensor between, of which a read-only array allows none
            else:
                value.copy_(new if isinstance(new, Tensor) else torch.tensor(new))
