"""Random numbers for very many small steps of training, at the price of reading them from memory.

A generator of normal numbers takes several times as long as the rest of a DP-SGD step of a small model. As
evolution strategies do for their perturbations (Salimans et al. 2017, arXiv:1703.03864, section 2.1), the
numbers of a step are therefore a window, at a random place, of a table that is drawn once: of standard normal
numbers, taken with a random sign, for noise; of uniform ones for dropout and quantisation.

Over places and signs, the entries of a window of noise have mean 0, the table's mean square, 1 ± 0.0007, as
their variance, and correlations of the order of 0.0005 with each other; two windows are uncorrelated. This is
for simulations only: noise that protects records must not be made like this, since whoever knows the table
knows it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng

TABLE = 2**22
"""Entries of a table, 16 MiB: few enough to stay in a processor's cache."""

LARGEST = 2**16
"""Normal numbers in a step beyond which the table would hold few windows: they are drawn afresh."""

LARGEST_UNIFORM = 2**20
"""The same of uniform ones, which are only compared with."""


class NoiseSource:
    """Makes the standard normal numbers of a step, ``size`` of them, from one random number."""

    def __init__(self, key: tuple[int, int], size: int) -> None:
        """Key: (seed, game), which decides the table."""
        self.size = size
        self._windows = None
        if size <= LARGEST:
            self._windows = _table(*key).unfold(0, size, 1)

    def draw(self, numbers: np.ndarray, out: Tensor) -> Tensor:
        """Write noise into ``out`` (M, size) float32; return the signs (M,) that it is to be multiplied by.

        numbers: (M,) uint64, uniform; the same number gives the same noise.
        """
        if self._windows is None:
            for number, row in zip(numbers, out, strict=True):
                row.normal_(generator=rng.torch_generator(int(number), "shadows/noise"))
            return torch.ones(len(numbers))
        # The lowest bit is the sign, the others choose the window: (windows, size) is a view of the table.
        places = (numbers >> np.uint64(1)) % np.uint64(len(self._windows))
        torch.index_select(self._windows, 0, torch.from_numpy(places.astype(np.int64)), out=out)
        return torch.from_numpy(np.where(numbers & np.uint64(1), np.float32(1), np.float32(-1)))


def uniform(key: tuple[int, int], numbers: np.ndarray, size: int) -> Tensor:
    """Return numbers in [0, 1), (M, size) float32, made from one random number (M,) uint64 for each row.

    key: (seed, game), which decides the table. A larger size begins with the same numbers.
    """
    if size > LARGEST_UNIFORM:
        streams = [rng.generator(int(number), "shadows/uniform") for number in numbers]
        return torch.from_numpy(np.stack([stream.random(size, np.float32) for stream in streams]))
    windows = np.lib.stride_tricks.sliding_window_view(_uniform_table(*key), size)
    # Places do not depend on the size, so that a larger one begins with the same numbers.
    places = numbers % np.uint64(TABLE - LARGEST_UNIFORM)
    return torch.from_numpy(windows[places.astype(np.intp)])


@lru_cache(maxsize=2)
def _table(seed: int, game: int) -> Tensor:
    stream = rng.torch_generator(seed, "shadows/noise table", game=game)
    return torch.empty(TABLE).normal_(generator=stream)


@lru_cache(maxsize=2)
def _uniform_table(seed: int, game: int) -> np.ndarray:
    return rng.generator(seed, "shadows/uniform table", game=game).random(TABLE, np.float32)
