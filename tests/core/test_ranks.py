"""How many lie below, against average ranks; the AUC, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from fedsim.core.ranks import auc, below


@pytest.mark.parametrize("values", [3, 1000], ids=["many ties", "few ties"])
def test_as_differences_of_average_ranks(values: int) -> None:
    stream = np.random.default_rng(0)
    scores, others = (stream.integers(values, size=n) / 7 for n in (40, 25))
    among_all = rankdata(np.concatenate([scores, others]))[:40]
    assert np.array_equal(below(scores, others), among_all - rankdata(scores))


def test_infinite_scores_are_the_last_and_the_first() -> None:
    scores, others = np.array([-np.inf, 0.0, np.inf]), np.array([np.inf, -1.0])
    assert below(scores, others).tolist() == [0.0, 1.0, 1.5]


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12).map(np.array)


@given(SCORES, SCORES)
def test_the_auc_is_scikit_learns(members: np.ndarray, others: np.ndarray) -> None:
    truth = np.arange(len(members) + len(others)) < len(members)
    expected = roc_auc_score(truth, np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(expected)
