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
        self.tabled = size <= LARGEST
        self._key = key

    @property
    def table(self) -> np.ndarray:
        """The table of which a step's numbers are a window, (TABLE,) float32."""
        return _table(*self._key).numpy()

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Return where the windows begin, int64 of the shape of ``numbers``."""
        # The lowest bit is the sign, the others choose the window.
        return ((numbers >> np.uint64(1)) % np.uint64(TABLE - self.size + 1)).astype(np.int64)

    def signs(self, numbers: np.ndarray) -> np.ndarray:
        """Return by what the windows are multiplied, ±1 float32 of the shape of ``numbers``."""
        return np.where(numbers & np.uint64(1), np.float32(1), np.float32(-1))

    def draw(self, numbers: np.ndarray, out: Tensor) -> Tensor:
        """Write noise into ``out`` (M, size) float32; return the signs (M,) that it is to be multiplied by.

        numbers: (M,) uint64, uniform; the same number gives the same noise.
        """
        if not self.tabled:
            for number, row in zip(numbers, out, strict=True):
                row.normal_(generator=rng.torch_generator(int(number), "shadows/noise"))
            return torch.ones(len(numbers))
        windows = _table(*self._key).unfold(0, self.size, 1)  # (windows, size), a view of the table
        torch.index_select(windows, 0, torch.from_numpy(self.places(numbers)), out=out)
        return torch.from_numpy(self.signs(numbers))


def uniform(key: tuple[int, int], numbers: np.ndarray, size: int) -> Tensor:
    """Return numbers in [0, 1), (M, size) float32, made from one random number (M,) uint64 for each row.

    key: (seed, game), which decides the table. A larger size begins with the same numbers.
    """
    if size > LARGEST_UNIFORM:
        streams = [rng.generator(int(number), "shadows/uniform") for number in numbers]
        return torch.from_numpy(np.stack([stream.random(size, np.float32) for stream in streams]))
    windows = np.lib.stride_tricks.sliding_window_view(uniform_table(*key), size)
    return torch.from_numpy(windows[uniform_places(numbers)])


def uniform_places(numbers: np.ndarray) -> np.ndarray:
    """Return where in the table these numbers' windows begin, int64 of the shape of ``numbers``."""
    # Places do not depend on the size, so that a larger window begins with the same numbers.
    return (numbers % np.uint64(TABLE - LARGEST_UNIFORM)).astype(np.int64)


@lru_cache(maxsize=2)
def _table(seed: int, game: int) -> Tensor:
    stream = rng.torch_generator(seed, "shadows/noise table", game=game)
    return torch.empty(TABLE).normal_(generator=stream)


@lru_cache(maxsize=2)
def uniform_table(seed: int, game: int) -> np.ndarray:
    """Return the table of uniform numbers, (TABLE,) float32."""
    return rng.generator(seed, "shadows/uniform table", game=game).random(TABLE, np.float32)
