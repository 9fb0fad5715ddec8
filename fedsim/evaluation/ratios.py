"""How many times one attack's rate is another's; it needs the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsim.evaluation.comparison import Comparison, Scored, bootstrapped_tpr
from fedsim.evaluation.estimates import ERROR


def ratio_of_tpr(
    games: Sequence[Scored], alpha: float, stream: np.random.Generator, draws: int = 2000
) -> Comparison:
    """Return TPR at FPR ``alpha`` of the first attack over the second's; ``scores`` are (2, n).

    Value, interval and p-value (of 'the same') are those of `comparison.compare_tpr`'s bootstrap. Where the
    second finds no one the ratio is infinite; where neither does, it is counted as 0 for the lower end and as
    infinite for the upper one, and the value is NaN.

    Raises:
        ValueError: all games' non-members together are too few (`estimates.bounded_below`).
    """
    rates, drawn = bootstrapped_tpr(games, alpha, stream, draws)
    ends = [_ratio(drawn[0], drawn[1], of_nothing) for of_nothing in (0.0, math.inf)]
    # An order statistic: between two infinite ones there is nothing to interpolate.
    low = np.quantile(ends[0], ERROR / 2, method="inverted_cdf")
    high = np.quantile(ends[1], 1 - ERROR / 2, method="inverted_cdf")
    tail = min(np.sum(drawn[0] <= drawn[1]), np.sum(drawn[0] >= drawn[1]))
    value = _ratio(rates[:1], rates[1:], math.nan)[0]
    return Comparison(float(value), float(low), float(high), float(min(1, 2 * (tail + 1) / (draws + 1))))


def _ratio(first: np.ndarray, second: np.ndarray, of_nothing: float) -> np.ndarray:
    """Return first / second, (b,); infinite over 0, and ``of_nothing`` where both are 0."""
    over = np.where(second > 0, first / np.where(second > 0, second, 1), math.inf)
    return np.where((first == 0) & (second == 0), of_nothing, over)
