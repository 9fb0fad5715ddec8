"""What (ε, δ)-DP allows any attack, and the smallest ε at which it allows what was seen."""

from __future__ import annotations

import math


def auc_bound(epsilon: float, delta: float) -> float:
    """Return the largest AUC, on average over games, of any attack on a party under (ε, δ)-DP (add/remove).

    A member i and a non-member j are as likely to be a member j and a non-member i. Let r be the chance that
    i ranks above j where both are left out: one record away from either world. Then 1 − r ≤ e^ε (1 − p) + δ
    with p = P(i above j | i in, j out), and r ≤ e^ε (1 − p') + δ with p' its mirror image; their sum gives
    (p + p') / 2 ≤ 1 − (1 − 2δ) e^−ε / 2. Laplace noise on a sum in which i counts 1 and j −1 reaches it.
    The area under Kairouz, Oh & Viswanath's (2015) region, e^ε / (1 + e^ε) at δ = 0, is smaller and no bound
    here: it is one record's in two worlds, where the AUC compares two records in one.
    """
    return 1 - max(0.0, 1 - 2 * delta) * math.exp(-epsilon) / 2


def advantage_bound(epsilon: float, delta: float) -> float:
    """Return the largest TPR − FPR, on average over games, under (ε, δ)-DP: 1 − (1 − 2δ) e^−ε.

    As `auc_bound`, with r the chance that i is called a member where both are left out.
    """
    return 2 * auc_bound(epsilon, delta) - 1


def tpr_bound(fpr: float, epsilon: float, delta: float) -> float:
    """Return the largest TPR at this FPR, on average over games, of any attack under (ε, δ)-DP (add/remove).

    Where i is a member another record is not, and the other way round: the two worlds differ in two records,
    as in `auc_bound`. With r the chance that i is called a member where both are left out, each of TPR and
    FPR lies in Kairouz, Oh & Viswanath's (2015) region of r, and the bound is that region applied twice.
    """
    return _region(_region(fpr, epsilon, delta), epsilon, delta)


def epsilon_needed(tpr: float, fpr: float, delta: float) -> float:
    """Return the smallest ε at which (ε, δ)-DP allows such rates (`tpr_bound`), on average over games.

    From the lower end of an interval of the TPR and the upper end of one of the FPR, 97.5 % sure each, it is
    a lower bound on the largest of the parties' true ε, with 95 %; 0 where the rates show nothing. Infinite
    where no ε allows them.
    """
    if tpr <= tpr_bound(fpr, 0.0, delta):
        return 0.0
    certain = tpr >= 1 and delta == 0  # in floating point a large ε would seem to do
    if certain or tpr > tpr_bound(fpr, 700.0, delta):
        return math.inf
    low, high = 0.0, 700.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if tpr_bound(fpr, middle, delta) >= tpr else (middle, high)
    return high


def _region(rate: float, epsilon: float, delta: float) -> float:
    """Return the power min(e^ε r + δ, 1 − e^−ε (1 − δ − r), 1) of a test at level r (ibid., thm 2.1)."""
    if math.isinf(epsilon):
        return 1.0
    steep = math.exp(min(epsilon, 700.0)) * rate + delta
    return min(1.0, steep, 1 - math.exp(-epsilon) * max(0.0, 1 - delta - rate))
