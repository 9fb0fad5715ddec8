"""Every random stream of an experiment, derived from (seed, purpose, game, party, round).

No other module creates a generator. Two streams with different keys are independent; the same key gives
the same stream on every engine and in every process, whatever ran before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def integer(
    seed: int, purpose: str, *, game: int = 0, party: str = "", round: int = 0, bits: int = 63
) -> int:
    """Return a non-negative integer of at most ``bits`` bits, a hash of the whole key.

    The parts are length-prefixed before hashing, so that no two keys spell the same text.
    """
    parts = [str(seed), purpose, str(game), party, str(round)]
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()) >> (256 - bits)


def generator(
    seed: int, purpose: str, *, game: int = 0, party: str = "", round: int = 0
) -> np.random.Generator:
    """Return the NumPy stream of this key (PCG64 seeded with 128 hashed bits)."""
    return np.random.default_rng(integer(seed, purpose, game=game, party=party, round=round, bits=128))


@contextmanager
def numpy_global(
    seed: int, purpose: str, *, game: int = 0, party: str = "", round: int = 0
) -> Iterator[None]:
    """Let NumPy's global functions draw from the stream of this key while the body runs.

    For libraries that know no other source; the global state is afterwards what it was before.
    """
    before = np.random.get_state()
    words = integer(seed, purpose, game=game, party=party, round=round, bits=128)
    np.random.set_state(dict(np.random.MT19937(words).state))
    try:
        yield
    finally:
        np.random.set_state(before)


def torch_generator(
    seed: int, purpose: str, *, game: int = 0, party: str = "", round: int = 0
) -> torch.Generator:
    """Return the torch (CPU) stream of this key."""
    import torch

    stream = torch.Generator()
    stream.manual_seed(integer(seed, purpose, game=game, party=party, round=round))
    return stream
