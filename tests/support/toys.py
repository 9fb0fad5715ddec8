"""Made-up records for the tests of this folder."""

from __future__ import annotations

import numpy as np

from fedsim.core.data.encode import Encoded


def make_encoded(
    n: int = 60, classes: int = 2, persons: int | None = None, parties: int | None = None, seed: int = 0
) -> Encoded:
    """Records whose first feature is their own row number, so that they can be found again."""
    draw = np.random.default_rng(seed)
    features = np.column_stack([np.arange(n), draw.normal(size=n)]).astype(np.float32)
    person = None if persons is None else np.array([f"p{i}" for i in draw.integers(persons, size=n)], object)
    party = None if parties is None else np.array([f"Site {i % parties}" for i in range(n)], object)
    labels = draw.integers(classes, size=n).astype(np.int64)
    names = tuple(str(c) for c in range(classes))
    return Encoded(features, labels, party, person, ("row", "x"), names, (), {}, "toy")
