"""`fedsim audit`: an empirical lower bound on one party's ε, beside the accountant's upper bound.

white-box    the auditor sees every step of the party's training, and plants gradient canaries
             (`attacks.canaries`): the tightest known.

An audit is a training run of its own, made for it and thrown away: no canary ever comes near a real run.

one-run      many canaries at once, each in or out on the toss of a coin.
many-run     a run for each guess, with one canary or without it.

Lower above upper means that the implementation, or its accounting, is broken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from attacks import auditing, canaries
from clients import dp
from fedsim import rng
from fedsim.data.records import Records
from fedsim.errors import InputError
from fedsim.privacy import Ledger, Plan
from fedsim.scenario import TrainingSettings

Vantage = Literal["white-box", "participant"]
Method = Literal["one-run", "many-run"]
Progress = Callable[[int, int], object]

PER_RUN = 250
"""Gradient canaries of one run: with more, the one-hot inputs would cost more than the run."""

SHARE_OF_RATIO = 0.8
"""Share of the error that the first score gets; the other, for repeated noise alone, has the rest."""


class Train(Protocol):
    """One round of training under DP-SGD: `clients.dp.train_private`, or what stands in for it in a test."""

    def __call__(
        self,
        module: torch.nn.Module,
        records: Records,
        settings: TrainingSettings,
        plan: Plan,
        /,
        *,
        sampling: torch.Generator,
        noise: torch.Generator,
        watch: dp.Watch | None,
    ) -> object:
        """Train ``module`` in place."""


@dataclass(frozen=True)
class AuditSettings:
    """What to audit, and how much of it.

    party: whose DP
    canaries: m, of the one-run method; spread over several runs if need be, since a record of one run is
        under the same guarantee in all of them together
    guesses: r, how many canaries are guessed on; default: the number that would give the largest bound if the
        noise were exactly the plan's, found before the run by simulation
    runs: of the many-run method, half of them with the canary
    confidence: probability that the lower bound lies below the true ε
    delta: δ of both bounds; default: that of the party's DP
    """

    party: str = ""
    vantage: Vantage = "white-box"
    method: Method = "one-run"
    canaries: int = 4000
    guesses: int | None = None
    runs: int = 400
    confidence: float = 0.95
    delta: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.canaries < 10:
            raise InputError(f"--canaries {self.canaries}: an audit needs at least 10")
        if self.runs < 10 or self.runs % 2:
            raise InputError(f"--runs {self.runs}: an audit needs an even number of runs, at least 10")
        if not 0 < self.confidence < 1:
            raise InputError(f"--confidence {self.confidence:g}: it must lie between 0 and 1, such as 0.95")
        if self.guesses is not None and not 1 <= self.guesses <= self.canaries:
            raise InputError(f"guesses = {self.guesses}: it must lie between 1 and {self.canaries} canaries")

    @property
    def error(self) -> float:
        """Probability of a bound above the true ε."""
        return 1 - self.confidence


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    lower: statistic → lower bound on ε, at ``confidence``
    ceiling: statistic → the largest bound that this audit could have found, every guess being right
    upper: the accountant's ε, infinite without DP
    guesses, correct: how many guesses were made, and how many of them were right
    canaries: how many were tossed coins for (one-run), or how many runs there were (many-run)
    """

    party: str
    vantage: Vantage
    method: Method
    lower: dict[str, float]
    ceiling: dict[str, float]
    upper: float
    guesses: int
    correct: int
    canaries: int
    confidence: float
    delta: float

    @property
    def violated(self) -> bool:
        """Whether a lower bound lies above the upper one."""
        return max(self.lower.values()) > self.upper


def white_box(
    settings: AuditSettings,
    plan: Plan,
    module: torch.nn.Module,
    records: Records,
    *,
    train: Train = dp.train_private,
    progress: Progress | None = None,
) -> Audit:
    """Audit ``train`` on ``records`` and canaries, with ``plan``'s sample rate, noise and steps.

    module: the party's; its weights are where the training starts, and it is left as it is.
    train: one round of DP-SGD, called ``plan.rounds`` times a run; it is what is under audit.
    """
    delta = plan.delta if settings.delta is None else settings.delta
    measure = _one_run if settings.method == "one-run" else _many_run
    outcome = measure(settings, plan, delta, _Laboratory(settings, plan, module, records, train, progress))
    return Audit(
        party=settings.party,
        vantage="white-box",
        method=settings.method,
        upper=_upper(plan, delta),
        confidence=settings.confidence,
        delta=delta,
        **dataclasses.asdict(outcome),
    )


@dataclass(frozen=True)
class _Outcome:
    lower: dict[str, float]
    ceiling: dict[str, float]
    guesses: int
    correct: int
    canaries: int


@dataclass(frozen=True)
class _Laboratory:
    """Runs the training under audit on canaries."""

    settings: AuditSettings
    plan: Plan
    module: torch.nn.Module
    records: Records
    train: Train
    progress: Progress | None

    def world(self, m: int) -> canaries.GradientCanaries:
        return canaries.gradient_canaries(self.module, self.records, m, self.plan)

    def run(
        self, world: canaries.GradientCanaries, inside: np.ndarray, number: int
    ) -> dict[canaries.Score, np.ndarray]:
        """Train once, with the canaries of ``inside``; return every canary's scores."""
        import copy

        module, records = copy.deepcopy(world.module), world.with_canaries(inside)
        readout = canaries.Readout(world, self.plan)
        for round in range(self.plan.rounds):
            readout.start_round()
            self.train(
                module,
                records,
                world.settings,
                self.plan,
                sampling=self._stream("audit sampling", number, round),
                noise=self._stream("audit noise", number, round),
                watch=readout.watch,
            )
        return readout.scores()

    def _stream(self, purpose: str, number: int, round: int) -> torch.Generator:
        settings = self.settings
        return rng.torch_generator(settings.seed, purpose, game=number, party=settings.party, round=round)

    def tell(self, done: int, total: int) -> None:
        if self.progress:
            self.progress(done, total)


def _one_run(settings: AuditSettings, plan: Plan, delta: float, laboratory: _Laboratory) -> _Outcome:
    m, error = settings.canaries, settings.error
    parts = np.array_split(np.arange(m), -(-m // PER_RUN))
    coins = rng.generator(settings.seed, "audit coins", party=settings.party).random(m) < 0.5
    found: dict[canaries.Score, list[np.ndarray]] = {}
    worlds: dict[int, canaries.GradientCanaries] = {}
    for number, part in enumerate(parts):
        world = worlds.setdefault(len(part), laboratory.world(len(part)))
        for score, values in laboratory.run(world, coins[part], number).items():
            found.setdefault(score, []).append(values)
        laboratory.tell(number + 1, len(parts))
    share = SHARE_OF_RATIO * error
    guesses = settings.guesses or _best_guesses(settings, plan, delta, share)
    bounds = {"steinke": auditing.steinke, "f-dp": auditing.f_dp}
    best = _Outcome({}, {}, 0, 0, 0)
    for score, level in (("likelihood ratio", share), ("repetition", error - share)):
        correct = auditing.correct_guesses(np.concatenate(found[score]), coins, guesses)
        lower = {name: bound(guesses, correct, m, delta, level) for name, bound in bounds.items()}
        ceiling = {name: bound(guesses, guesses, m, delta, level) for name, bound in bounds.items()}
        if not best.lower or lower["f-dp"] > best.lower["f-dp"]:
            best = _Outcome(lower, ceiling, guesses, correct, m)
    return best


def _many_run(settings: AuditSettings, plan: Plan, delta: float, laboratory: _Laboratory) -> _Outcome:
    runs, error = settings.runs, settings.error
    world, threshold = laboratory.world(1), _best_threshold(settings, plan, error)
    said = np.zeros(runs, dtype=bool)
    inside = np.arange(runs) % 2 == 0
    for number in range(runs):
        score = laboratory.run(world, inside[number : number + 1], number)["likelihood ratio"]
        said[number] = score[0] > threshold
        laboratory.tell(number + 1, runs)
    half = runs // 2
    hits, false_alarms = int(said[inside].sum()), int(said[~inside].sum())
    bounds = {"clopper-pearson": auditing.clopper_pearson, "gaussian": auditing.gaussian_dp}
    return _Outcome(
        {name: bound(hits, half, false_alarms, half, delta, error) for name, bound in bounds.items()},
        {name: bound(half, half, 0, half, delta, error) for name, bound in bounds.items()},
        guesses=runs,
        correct=hits + half - false_alarms,
        canaries=runs,
    )


def _upper(plan: Plan, delta: float) -> float:
    if delta == plan.delta:
        return plan.epsilon
    steps = plan.rounds * plan.steps_per_round
    return Ledger().add(plan.noise_multiplier, plan.sample_rate, steps).epsilon(delta, plan.accountant)


def _rehearsal(settings: AuditSettings, plan: Plan, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of ``n`` canaries inside and ``n`` outside, were the noise exactly the plan's."""
    stream = rng.generator(settings.seed, "audit rehearsal", party=settings.party)
    scores = np.zeros((2, n))
    for _ in range(plan.rounds * plan.steps_per_round):
        x = plan.gradient_noise * stream.standard_normal((2, n))
        x[0] += stream.random(n) < plan.sample_rate
        scores += canaries.likelihood_ratio(x, plan.sample_rate, plan.gradient_noise)
    return scores[0], scores[1]


def _best_guesses(settings: AuditSettings, plan: Plan, delta: float, error: float) -> int:
    """Return the number of guesses with the largest f-DP bound in a rehearsal: no look at the real scores."""
    inside, outside = _rehearsal(settings, plan)
    scores = np.concatenate([inside, outside])
    truth = np.arange(len(scores)) < len(inside)
    m, found = settings.canaries, []
    for share in (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0):
        guesses = max(2, int(share * m))
        sample = int(share * len(scores))
        right = auditing.correct_guesses(scores, truth, sample) / sample
        bound = auditing.f_dp(guesses, int(right * guesses), m, delta, error)
        found.append((bound, guesses))
    return max(found)[1]


def _best_threshold(settings: AuditSettings, plan: Plan, error: float) -> float:
    """Return the threshold with the largest Gaussian bound in a rehearsal."""
    inside, outside = _rehearsal(settings, plan)
    half = settings.runs // 2
    found = []
    for threshold in np.quantile(np.concatenate([inside, outside]), np.linspace(0.1, 0.9, 17)):
        hits, false_alarms = (round(float(np.mean(s > threshold)) * half) for s in (inside, outside))
        found.append((auditing.gaussian_dp(hits, half, false_alarms, half, 1e-5, error), float(threshold)))
    return max(found)[1]
