"""How many lie below, against average ranks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from fedsim.core.ranks import below


@pytest.mark.parametrize("values", [3, 1000], ids=["many ties", "few ties"])
def test_as_differences_of_average_ranks(values: int) -> None:
    stream = np.random.default_rng(0)
    scores, others = (stream.integers(values, size=n) / 7 for n in (40, 25))
    among_all = rankdata(np.concatenate([scores, others]))[:40]
    assert np.array_equal(below(scores, others), among_all - rankdata(scores))


def test_infinite_scores_are_the_last_and_the_first() -> None:
    scores, others = np.array([-np.inf, 0.0, np.inf]), np.array([np.inf, -1.0])
    assert below(scores, others).tolist() == [0.0, 1.0, 1.5]
