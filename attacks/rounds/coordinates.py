"""The coordinates in which updates are compared: scaled, and projected where there are too many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core import rng

EXPONENT, SOFTENING = 0.75, 0.3
"""Coordinates are divided by (deviation + softening · median deviation) ^ exponent."""


def scale_of(signatures: np.ndarray) -> np.ndarray:
    """Return what each coordinate is multiplied by, (q,) float32: those that all records move count less.

    signatures: (n, q)
    """
    deviation = signatures.std(axis=0, dtype=np.float64)
    moving = deviation > 0
    if not moving.any():
        return np.ones(len(deviation), np.float32)
    softened = deviation + SOFTENING * np.median(deviation[moving])
    return np.asarray(softened**-EXPONENT, np.float32)


@dataclass(frozen=True, eq=False)
class Sketch:
    """A sparse random projection: every coordinate goes into one of q buckets, with a random sign.

    Inner products are kept on average, with a variance of about 2/q of the lengths' squares (Charikar, Chen &
    Farach-Colton 2002; Weinberger et al. 2009).

    scale: (p,) float32, by which coordinates are multiplied first; bucket: (p,) int; sign: (p,) float32
    """

    scale: np.ndarray
    bucket: np.ndarray
    sign: np.ndarray
    size: int

    @staticmethod
    def draw(scale: np.ndarray, size: int, seed: int) -> Sketch:
        """Draw a projection of p coordinates onto ``size``."""
        stream = rng.generator(seed, "round-decoding/sketch")
        bucket = stream.integers(0, size, len(scale))
        return Sketch(scale, bucket, stream.choice(np.array([-1, 1], np.float32), len(scale)), size)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors (b, p) projected, (b, q) float32."""
        from scipy.sparse import csr_array

        place = (np.arange(len(self.bucket)), self.bucket)
        matrix = csr_array((self.scale * self.sign, place), shape=(len(self.bucket), self.size))
        return np.asarray(np.asarray(vectors, np.float32) @ matrix, np.float32)
