"""DP-SGD of one party for the whole planned run, fixed before round 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedsim.core.privacy.accountants import Accountant
from fedsim.core.privacy.calibration import solve_noise_multiplier
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import TrainingSettings


@dataclass(frozen=True)
class Plan:
    """DP-SGD of one party for the whole planned run, fixed before round 1.

    sample_rate: q, probability with which a record (of ``unit`` 'person', a person) takes part in a step
    expected_batch: q·n, the denominator of the averaged gradient
    noise_multiplier: σ, by which ε is accounted; the noise on the summed gradient has standard deviation σC,
        a little more under adaptive clipping (`gradient_noise`)
    clipping_norm: C, bound on the Euclidean norm of a record's gradient; the first one if adaptive
    epsilon: ε of all ``rounds`` at ``delta``
    budget: ε at which the party stops; infinite where none is set
    clipping: whether C stays, or follows the quantile γ = clipping_quantile of the gradients' norms with
        learning rate η = clipping_rate (`next_clipping_norm`)
    unit: what one unit of n, and of the guarantee, is: a record, or a person with all of hers
    records_per_person: of ``unit`` 'person', at most so many of hers are trained on; 0 for all
    """

    sample_rate: float
    expected_batch: float
    steps_per_round: int
    noise_multiplier: float
    rounds: int
    delta: float
    clipping_norm: float
    accountant: Accountant
    epsilon: float
    budget: float
    clipping: Literal["flat", "adaptive"] = "flat"
    clipping_quantile: float = 0.5
    clipping_rate: float = 0.2
    unit: Literal["record", "person"] = "record"
    records_per_person: int = 0

    @property
    def count_noise(self) -> float:
        """σ_b, the standard deviation of the noise on the count of gradients that C does not shorten.

        A twentieth of the expected batch (Andrew et al. 2021, section 3.1), but at least σ: the gradients'
        own noise grows by 2/√3 at most, however small the batches are.
        """
        return max(self.expected_batch / 20, self.noise_multiplier)

    @property
    def gradient_noise(self) -> float:
        """z_Δ: the noise on the sum of the clipped gradients has standard deviation z_Δ C.

        z_Δ = (σ⁻² − (2σ_b)⁻²)^(−1/2) under adaptive clipping (Andrew et al. 2021, theorem 1), else σ.
        """
        if self.clipping == "flat" or self.noise_multiplier == 0:
            return self.noise_multiplier
        return (self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5

    @property
    def noisy(self) -> bool:
        """Whether a step draws any noise."""
        return self.noise_multiplier > 0 or self.clipping == "adaptive"

    def next_clipping_norm(self, norm: float, count: float) -> float:
        """Return C after a step with C = ``norm``: C exp(−η (b̃ − γ)) (Andrew et al. 2021, section 2.2).

        count: Σ_i (1[‖g_i‖ ≤ C] − ½) + N(0, σ_b²) over the batch. One record moves the sum by ½; that of the
        indicators themselves it moves by 1, and their number is private under Poisson sampling. b̃ is its
        quotient by the expected batch, plus ½, at the nearest in [0, 1].
        """
        share = min(1.0, max(0.0, 0.5 + count / self.expected_batch))
        return norm * math.exp(-self.clipping_rate * (share - self.clipping_quantile))

    def spend(self, ledger: Ledger, steps: int | None = None) -> Ledger:
        """Return ``ledger`` after one more round (or after ``steps`` steps of it)."""
        steps = self.steps_per_round if steps is None else steps
        return ledger.add(self.noise_multiplier, self.sample_rate, steps)


def steps_per_round(training: TrainingSettings, n: int) -> int:
    """Return the optimizer steps of one round on ``n`` records: ``steps``, or ``epochs`` × ⌈n / batch⌉.

    The same with and without DP, where an epoch is ⌈1/q⌉ Poisson batches.
    """
    return training.steps or training.epochs * -(-n // training.batch)


def make_plan(dp: DPSettings, training: TrainingSettings, n: int, rounds: int) -> Plan:
    """Return the plan of a party with ``n`` records, or persons, that may take part in all ``rounds``.

    Given a target ε, σ is solved once for all steps of the run, so that the planned ε is at most the target
    and less than 1 % below it.

    n, rounds: public; the plan is a function of its arguments and so tells nothing else

    Formal guarantee:
        DP-SGD (`core.training.dp.train_private`) that makes at most ``rounds`` × `Plan.steps_per_round` steps
        with this σ, sample rate and C is (`Plan.epsilon`, δ)-DP for one record added or taken away (one
        person, if that is the unit: `core.training.persons.train_by_person`), by the
        accountant's composition of Poisson-subsampled Gaussian mechanisms. It does not cover the choice of
        ``dp`` and ``training``, nor more rounds than were planned: that is for the ledger and the budget.

    Raises:
        InputError: no amount of noise reaches the target.

    >>> plan = make_plan(DPSettings(epsilon=2.0), TrainingSettings(batch=10, epochs=1), n=100, rounds=3)
    >>> plan.sample_rate, plan.steps_per_round, 1.98 <= plan.epsilon <= 2.0
    (0.1, 10, True)
    """
    rate = min(1.0, training.batch / n)
    per_round = steps_per_round(training, n)
    total = per_round * rounds
    if dp.noise_multiplier is not None:
        noise = dp.noise_multiplier
    else:
        assert dp.epsilon is not None  # DPSettings has one of the two
        noise = solve_noise_multiplier(dp.epsilon, dp.delta, rate, total, dp.accountant)
    return Plan(
        sample_rate=rate,
        expected_batch=float(min(training.batch, n)),
        steps_per_round=per_round,
        noise_multiplier=noise,
        rounds=rounds,
        delta=dp.delta,
        clipping_norm=dp.clipping_norm or training.private.clipping_norm,
        accountant=dp.accountant,
        epsilon=Ledger().add(noise, rate, total).epsilon(dp.delta, dp.accountant),
        budget=dp.budget or dp.epsilon or math.inf,
        clipping=dp.clipping,
        clipping_quantile=dp.clipping_quantile,
        clipping_rate=dp.clipping_rate,
        unit=dp.unit,
        records_per_person=dp.records_per_person or 0,
    )


def would_exceed(ledger: Ledger, plan: Plan) -> bool:
    """Return whether one more round would take the party above its budget (but for float noise, 1e-9)."""
    after = plan.spend(ledger).epsilon(plan.delta, plan.accountant) if math.isfinite(plan.budget) else 0.0
    return after > plan.budget * (1 + 1e-9)
