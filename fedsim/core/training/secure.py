"""Randomness that nobody can repeat: from the operating system's cryptographic generator.

A seeded generator's noise can be taken off again by whoever knows or guesses its seed, or works back to its
state from what it put out; DP-SGD's guarantee supposes that nobody can. What is drawn here has no seed.
"""

from __future__ import annotations

import math
import os
import secrets

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

# Four, as Opacus has it, is the 2n of Holohan & Braghin with n = 2.
SUMMED = 4


def uniform(n: int) -> Tensor:
    """Return n independent numbers (n,) float64, uniform on the multiples of 2⁻⁵³ in [0, 1)."""
    return torch.from_numpy(_bits(n) * 2.0**-53)


def normal_(tensor: Tensor, deviation: float) -> Tensor:
    """Fill ``tensor`` in place with N(0, deviation²) and return it.

    Each number is a sum of four normal ones, halved: which floating-point numbers one call of a Gaussian
    sampler can return tells what it was added to (Mironov 2012); for a sum of four, an attacker would have to
    search 2¹⁵⁹ states (Holohan & Braghin 2021, section 5.1).
    """
    total = sum(_normal(tensor.numel()) for _ in range(SUMMED))
    numbers = torch.from_numpy(total * (deviation / math.sqrt(SUMMED)))
    return tensor.copy_(numbers.view(tensor.shape))


def torch_generator() -> torch.Generator:
    """Return a torch stream (CPU) with a seed from the operating system, for what is not privacy's matter."""
    return torch.Generator().manual_seed(secrets.randbits(63))


def _normal(n: int) -> np.ndarray:
    """Return n standard normal numbers (n,) float64, by the inverse of the distribution function.

    A sign and 53 bits of a tail probability in (0, ½): as precise in both tails, which end at 8.3.
    """
    tail = (_bits(n) + 0.5) * 2.0**-54
    sign = np.where(np.frombuffer(os.urandom(n), np.uint8) & 1, 1.0, -1.0)
    return sign * ndtri(tail)


def _bits(n: int) -> np.ndarray:
    """Return n independent numbers (n,) float64, uniform on 0 … 2⁵³ − 1."""
    return (np.frombuffer(os.urandom(8 * n), np.uint64) >> np.uint64(11)).astype(np.float64)
