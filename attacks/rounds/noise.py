"""The noise of DP-SGD in an update, where it can be said in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from attacks.shadows.plan import FederationPlan
from fedsim.core.scenario.training import TrainingSettings


def noise_in_update(plan: FederationPlan, parties: Sequence[int]) -> float:
    """Return τ², the variance that the parties' noise adds to each coordinate of Σ_k (n_k/N)(w^k − w_{t−1}).

    Of a step of SGD the noise has deviation lr·zC/B (Abadi et al. 2016, algorithm 1), of which momentum β
    adds up (1 − β^j)/(1 − β) over the j steps that follow. That it moves later gradients too is left out.
    0 for a party whose noise is not of this form: `silenced` leaves it in its simulated rounds.
    """
    shares = plan.sizes / plan.sizes.sum()
    return float(sum(shares[k] ** 2 * _noise_of(plan, k) for k in parties if _additive(plan, k)))


def silenced(plan: FederationPlan) -> FederationPlan:
    """Return the plan without the noise that `noise_in_update` accounts for; clipping stays."""
    quiet = [
        replace(party, dp=replace(party.dp, noise_multiplier=0.0))
        if party.dp is not None and _additive(plan, k)
        else party
        for k, party in enumerate(plan.parties)
    ]
    return replace(plan, parties=tuple(quiet))


def _additive(plan: FederationPlan, k: int) -> bool:
    party = plan.parties[k]
    shaped = (party.defence.clip_update, party.defence.sparsify, party.defence.quantise)
    plain = plan.training_of(k).optimizer == "sgd" and not any(each is not None for each in shaped)
    return party.dp is not None and party.dp.clipping == "flat" and plain


def _noise_of(plan: FederationPlan, k: int) -> float:
    dp, training = plan.dp(k), plan.training_of(k)
    deviation = training.lr * dp.gradient_noise * dp.clipping_norm / dp.expected_batch
    return float(deviation**2 * np.sum(_weights_of_steps(training, dp.steps_per_round) ** 2))


def _weights_of_steps(training: TrainingSettings, steps: int) -> np.ndarray:
    """Return by what a step's gradient is multiplied in the end, beside −lr, (steps,)."""
    beta, left = training.momentum, np.arange(steps, 0, -1)
    return np.asarray((1 - beta**left) / (1 - beta) if beta else np.ones(steps))
