"""`fedsim audit`: an empirical lower bound on one party's ε, beside the accountant's upper bound.

white-box    the auditor sees every step of the party's training, and plants gradient canaries
             (`attacks.canaries`): the tightest known.

An audit is a training run of its own, made for it and thrown away: no canary ever comes near a real run.

one-run      many canaries at once, each in or out on the toss of a coin.
many-run     a run for each guess, with one canary or without it.

Lower above upper means that the implementation, or its accounting, is broken.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
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
World = canaries.GradientCanaries | canaries.LoneCanary

PER_RUN = 250
"""Gradient canaries of one run: with more, the one-hot inputs would cost more than the run."""

LEVELS = {"planned": 1.0, "half": 0.5, "tenth": 0.1, "none": 0.01}
"""Scores by the noise, in units of the plan's, against which each is the best there is."""

MAIN_SHARE = 0.6
"""Share of the error for the test that is best against correct noise; those against bugs share the rest."""


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

    def run(self, world: World, inside: np.ndarray, number: int) -> np.ndarray:
        """Train once, with the canaries of ``inside``; return what was read, see `canaries.Readout.steps`."""
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
        return readout.steps()

    def _stream(self, purpose: str, number: int, round: int) -> torch.Generator:
        settings = self.settings
        return rng.torch_generator(settings.seed, purpose, game=number, party=settings.party, round=round)

    def ratio(self, x: np.ndarray, level: float, signal: float | np.ndarray = 1.0) -> np.ndarray:
        """Return the log-likelihood ratio of all steps (rounds, steps, …) at ``level`` times σ."""
        noise = level * self.plan.gradient_noise
        return canaries.likelihood_ratio(x, self.plan.sample_rate, noise, signal).sum(axis=(0, 1))

    def tell(self, done: int, total: int) -> None:
        if self.progress:
            self.progress(done, total)


def _one_run(settings: AuditSettings, plan: Plan, delta: float, laboratory: _Laboratory) -> _Outcome:
    m = settings.canaries
    parts = np.array_split(np.arange(m), -(-m // PER_RUN))
    coins = rng.generator(settings.seed, "audit coins", party=settings.party).random(m) < 0.5
    scores = {name: np.zeros(m) for name in (*LEVELS, "repetition")}
    world = canaries.gradient_canaries(laboratory.module, laboratory.records, len(parts[0]), plan)
    for number, part in enumerate(parts):
        if len(part) != len(world.canaries):
            world = canaries.gradient_canaries(laboratory.module, laboratory.records, len(part), plan)
        x = laboratory.run(world, coins[part], number)
        for name, level in LEVELS.items():
            scores[name][part] = laboratory.ratio(x, level)
        scores["repetition"][part] = canaries.repetition(x)
        laboratory.tell(number + 1, len(parts))
    return _best_of(
        [
            _guessed(scores[score], coins, guesses, share * settings.error, delta)
            for score, guesses, share in _one_run_tests(settings, plan, delta)
        ]
    )


def _one_run_tests(settings: AuditSettings, plan: Plan, delta: float) -> list[tuple[str, int, float]]:
    """Return (score, guesses, share of the error) of every test, fixed before the run.

    Few guesses are best against noise as planned; but only many can tell how broken a broken one is.
    """
    half, whole, fixed = settings.canaries // 2, settings.canaries, settings.guesses
    first = ("planned", fixed or _best_guesses(settings, plan, delta), MAIN_SHARE)
    others = [("half", half), ("tenth", half), ("none", whole), ("repetition", half)]
    share = (1 - MAIN_SHARE) / len(others)
    return [first, *((score, fixed or guesses, share) for score, guesses in others)]


def _guessed(scores: np.ndarray, coins: np.ndarray, guesses: int, error: float, delta: float) -> _Outcome:
    m, correct = len(coins), auditing.correct_guesses(scores, coins, guesses)
    bounds = {"steinke": auditing.steinke, "f-dp": auditing.f_dp}
    return _Outcome(
        {name: bound(guesses, correct, m, delta, error) for name, bound in bounds.items()},
        {name: bound(guesses, guesses, m, delta, error) for name, bound in bounds.items()},
        guesses,
        correct,
        m,
    )


def _best_of(tests: Sequence[_Outcome]) -> _Outcome:
    """Return the test with the largest bound, with the largest ceilings of all."""
    best = max(tests, key=lambda test: max(test.lower.values()))
    ceiling = {name: max(test.ceiling[name] for test in tests) for name in best.ceiling}
    return dataclasses.replace(best, ceiling=ceiling)


def _many_run(settings: AuditSettings, plan: Plan, delta: float, laboratory: _Laboratory) -> _Outcome:
    stream = rng.generator(settings.seed, "lone canary", party=settings.party)
    world = canaries.lone_canary(laboratory.module, laboratory.records.shape, plan, stream)
    runs, signals = settings.runs, world.signals
    inside, steps = np.arange(runs) % 2 == 0, []
    for number in range(runs):
        steps.append(laboratory.run(world, inside[number : number + 1], number))
        laboratory.tell(number + 1, runs)
    x = np.stack(steps, axis=2)  # (rounds, steps, runs, directions)
    planned = laboratory.ratio(x[..., 0], 1.0)
    said = planned > _best_threshold(settings, plan, delta)
    tests = [_told_apart(said, inside, MAIN_SHARE * settings.error, delta)]
    # The first quarter of the runs sets the other thresholds: nobody can know what a broken run looks like.
    scores = [laboratory.ratio(x[..., 0], level) for level in LEVELS.values() if level < 1]
    scores += [laboratory.ratio(x[..., k], LEVELS["none"], signals[k]) for k in range(1, len(signals))]
    scores += [canaries.repetition(x[..., 0])]
    first = np.arange(runs) < runs // 4
    for score in scores:
        said = score > _midway(score[first], inside[first])
        error = (1 - MAIN_SHARE) / len(scores) * settings.error
        tests.append(_told_apart(said[~first], inside[~first], error, delta))
    return _best_of(tests)


def _midway(scores: np.ndarray, inside: np.ndarray) -> float:
    """Return the threshold with the most correct guesses on these runs, the middle one of equals."""
    ordered = np.sort(scores)
    cuts = (ordered[1:] + ordered[:-1]) / 2
    right = ((scores > cuts[:, None]) == inside).sum(axis=1)
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[len(best) // 2]])


def _told_apart(said: np.ndarray, inside: np.ndarray, error: float, delta: float) -> _Outcome:
    n, m = int(inside.sum()), int((~inside).sum())
    hits, false_alarms = int(said[inside].sum()), int(said[~inside].sum())
    bounds = {"clopper-pearson": auditing.clopper_pearson, "gaussian": auditing.gaussian_dp}
    return _Outcome(
        {name: bound(hits, n, false_alarms, m, delta, error) for name, bound in bounds.items()},
        {name: bound(n, n, 0, m, delta, error) for name, bound in bounds.items()},
        guesses=len(said),
        correct=hits + m - false_alarms,
        canaries=len(said),
    )


def _upper(plan: Plan, delta: float) -> float:
    if delta == plan.delta:
        return plan.epsilon
    steps = plan.rounds * plan.steps_per_round
    return Ledger().add(plan.noise_multiplier, plan.sample_rate, steps).epsilon(delta, plan.accountant)


def _rehearsal(settings: AuditSettings, plan: Plan, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of ``n`` canaries inside and ``n`` outside, were the noise exactly the plan's."""
    stream = rng.generator(settings.seed, "audit rehearsal", party=settings.party)
    scores, noise = np.zeros((2, n)), plan.gradient_noise
    for _ in range(plan.rounds * plan.steps_per_round):
        x = noise * stream.standard_normal((2, n))
        x[0] += stream.random(n) < plan.sample_rate
        scores += canaries.likelihood_ratio(x, plan.sample_rate, noise)
    return scores[0], scores[1]


def _best_guesses(settings: AuditSettings, plan: Plan, delta: float) -> int:
    """Return the number of guesses with the largest f-DP bound in a rehearsal: no look at the real scores."""
    inside, outside = _rehearsal(settings, plan, 4000)
    scores = np.concatenate([inside, outside])
    truth = np.arange(len(scores)) < len(inside)
    m, found = settings.canaries, []
    for share in (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0):
        guesses = max(2, int(share * m))
        sample = int(share * len(scores))
        right = auditing.correct_guesses(scores, truth, sample) / sample
        bound = auditing.f_dp(guesses, int(right * guesses), m, delta, MAIN_SHARE * settings.error)
        found.append((bound, guesses))
    return max(found)[1]


def _best_threshold(settings: AuditSettings, plan: Plan, delta: float) -> float:
    """Return the threshold with the largest Gaussian bound in a rehearsal."""
    inside, outside = _rehearsal(settings, plan, 4000)
    half, found = settings.runs // 2, []
    for threshold in np.quantile(np.concatenate([inside, outside]), np.linspace(0.1, 0.9, 17)):
        hits, false_alarms = (round(float(np.mean(s > threshold)) * half) for s in (inside, outside))
        bound = auditing.gaussian_dp(hits, half, false_alarms, half, delta, MAIN_SHARE * settings.error)
        found.append((bound, float(threshold)))
    return max(found)[1]
