"""`fedsim audit`: an empirical lower bound on one party's ε, beside the accountant's upper bound.

white-box    the auditor sees every step of the party's training, and plants gradient canaries
             (`attacks.canaries`): the tightest known.
participant  the auditor is the malicious participant: it sees the models that it is sent, no more, and the
             canaries are records of the party.

An audit makes a run of its own in a folder of its own: no canary ever comes near a real run. What follows the
noise, and defences without a guarantee, are left out of the white box: they do not count towards ε.

one-run      many canaries at once, each in or out on the toss of a coin.
many-run     a run for each guess, with one canary or without it.

Lower above upper means that the implementation, or its accounting, is broken.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from attacks import auditing, canaries, observer
from clients import dp
from clients.training import train as train_openly
from fedsim import models, privacy, rng, runner
from fedsim.data.records import Records
from fedsim.data.store import PartyRecords, read_party, write_party
from fedsim.engines import inprocess
from fedsim.errors import InputError, suggestion
from fedsim.privacy import Ledger, Plan
from fedsim.results import RunDirectory
from fedsim.scenario import DPSettings, Scenario, TrainingSettings

Vantage = Literal["white-box", "participant"]
Method = Literal["one-run", "many-run"]
VANTAGES: tuple[Vantage, ...] = ("white-box", "participant")
Progress = Callable[[int, int], object]
World = canaries.GradientCanaries | canaries.LoneCanary

PER_RUN = 250
"""Gradient canaries of one run: with more, the one-hot inputs would cost more than the run."""

CANARIES: Mapping[Vantage, int] = {"white-box": 4000, "participant": 400}
RUNS: Mapping[Vantage, int] = {"white-box": 400, "participant": 100}
"""Defaults, of one-run and of many-run."""

LEVELS = {"planned": 1.0, "half": 0.5, "tenth": 0.1, "none": 0.01}
"""Scores by the noise, in units of the plan's, against which each is the best there is."""

MAIN_SHARE = 0.6
"""Share of the error for the test that is best against correct noise; those against bugs share the rest."""


Train = Callable[..., Any]
"""One round of training: ``train(module, records, settings, plan, *, sampling, noise, watch)``.

`clients.dp.train_private`, or what stands in for it. Where clipping adapts, it takes ``clipping_norm`` too,
and what it returns has the next one.
"""


@dataclass(frozen=True)
class AuditSettings:
    """What to audit, and how much of it.

    party: whose DP
    canaries: m ≥ 10, of the one-run method; spread over several runs if need be, since a record of one run is
        under the same guarantee in all of them together
    guesses: r, how many canaries are guessed on; default: the number that would give the largest bound if the
        noise were exactly the plan's, found before the run by simulation
    runs: an even number ≥ 10, of the many-run method, half of them with the canary
    confidence: probability that the lower bound lies below the true ε
    delta: δ of both bounds; default: that of the party's DP
    """

    party: str = ""
    vantage: Vantage = "white-box"
    method: Method = "one-run"
    canaries: int = CANARIES["white-box"]
    guesses: int | None = None
    runs: int = RUNS["white-box"]
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
    estimate: statistic → what would be a lower bound, were the canaries of one run independent of each other;
        empty where that is not known to be nearly so
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
    estimate: dict[str, float] = dataclasses.field(default_factory=dict)

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
    workers: int = 1,
    progress: Progress | None = None,
) -> Audit:
    """Audit ``train`` on ``records`` and canaries, with ``plan``'s sample rate, noise and steps.

    module: the party's; its weights are where the training starts, and it is left as it is.
    train: one round of DP-SGD, called ``plan.rounds`` times a run; it is what is under audit.
    workers: processes to share the runs; ``train`` is pickled then
    """
    delta = plan.delta if settings.delta is None else settings.delta
    measure = _one_run if settings.method == "one-run" else _many_run
    laboratory = _Laboratory(settings, plan, module, records, train, workers, progress)
    outcome = measure(settings, plan, delta, laboratory)
    return _audit(settings, "white-box", outcome, _upper(plan, delta), delta)


def _audit(settings: AuditSettings, vantage: Vantage, outcome: _Outcome, upper: float, delta: float) -> Audit:
    return Audit(
        party=settings.party,
        vantage=vantage,
        method=settings.method,
        upper=upper,
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
    estimate: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class _Laboratory:
    """Runs the training under audit on canaries."""

    settings: AuditSettings
    plan: Plan
    module: torch.nn.Module
    records: Records
    train: Train
    workers: int
    progress: Progress | None

    def run_all(self, worlds: Sequence[World], inside: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield `run` of every world, in order, whatever process makes it."""
        numbers = range(len(worlds))
        if self.workers == 1 or not _portable(self.module):
            yield from self._told(map(self.run, worlds, inside, numbers), len(worlds))
            return
        alone = dataclasses.replace(self, progress=None)
        context = multiprocessing.get_context("spawn")
        with (
            inprocess.environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
            ProcessPoolExecutor(min(self.workers, len(worlds)), mp_context=context) as pool,
        ):
            yield from self._told(pool.map(alone.run, worlds, inside, numbers), len(worlds))

    def _told(self, results: Iterator[np.ndarray], total: int) -> Iterator[np.ndarray]:
        for done, result in enumerate(results, start=1):
            yield result
            if self.progress:
                self.progress(done, total)

    def run(self, world: World, inside: np.ndarray, number: int) -> np.ndarray:
        """Train once, with the canaries of ``inside``; return what was read, see `canaries.Readout.steps`."""
        torch.set_num_threads(1)
        module, records = copy.deepcopy(world.module), world.with_canaries(inside)
        readout = canaries.Readout(world, self.plan)
        adapted: dict[str, float] = {}
        for round in range(self.plan.rounds):
            readout.start_round()
            report = self.train(
                module,
                records,
                world.settings,
                self.plan,
                sampling=self._stream("audit sampling", number, round),
                noise=self._stream("audit noise", number, round),
                watch=readout.watch,
                **adapted,
            )
            if self.plan.clipping == "adaptive":
                adapted["clipping_norm"] = report.clipping_norm
        return readout.steps()

    def _stream(self, purpose: str, number: int, round: int) -> torch.Generator:
        settings = self.settings
        return rng.torch_generator(settings.seed, purpose, game=number, party=settings.party, round=round)

    def ratio(self, x: np.ndarray, level: float, signal: float | np.ndarray = 1.0) -> np.ndarray:
        """Return the log-likelihood ratio of all steps (rounds, steps, …) at ``level`` times σ."""
        noise = level * self.plan.gradient_noise
        return canaries.likelihood_ratio(x, self.plan.sample_rate, noise, signal).sum(axis=(0, 1))


def _portable(module: torch.nn.Module) -> bool:
    """Return whether another process can import what ``module`` is made of."""
    return all(type(part).__module__.startswith("torch.") for part in module.modules())


def _one_run(settings: AuditSettings, plan: Plan, delta: float, laboratory: _Laboratory) -> _Outcome:
    m = settings.canaries
    parts = np.array_split(np.arange(m), -(-m // _per_run(plan, len(laboratory.records))))
    coins = rng.generator(settings.seed, "audit coins", party=settings.party).random(m) < 0.5
    scores = {name: np.zeros(m) for name in (*LEVELS, "repetition")}
    of_size = functools.cache(
        lambda size: canaries.gradient_canaries(laboratory.module, laboratory.records, size, plan)
    )
    runs = laboratory.run_all([of_size(len(part)) for part in parts], [coins[part] for part in parts])
    for part, x in zip(parts, runs, strict=True):
        for name, level in LEVELS.items():
            scores[name][part] = laboratory.ratio(x, level)
        scores["repetition"][part] = canaries.repetition(x)
    best = _best_of(
        [
            _guessed(scores[score], coins, guesses, share * settings.error, delta)
            for score, guesses, share in _one_run_tests(settings, plan, delta)
        ]
    )
    said = scores["planned"] > _best_threshold(settings, plan, m)
    return dataclasses.replace(best, estimate=_told_apart(said, coins, settings.error, delta, plan).lower)


def _per_run(plan: Plan, n: int) -> int:
    """Return how many canaries a run has; where C adapts, so few that it follows the own records instead."""
    return PER_RUN if plan.clipping == "flat" else max(2, min(PER_RUN, n // 4))


def _one_run_tests(settings: AuditSettings, plan: Plan, delta: float) -> list[tuple[str, int, float]]:
    """Return (score, guesses, share of the error) of every test, fixed before the run.

    Few guesses are best against noise as planned; but only many can tell how broken a broken one is.
    """
    half, all_but_few, fixed = settings.canaries // 2, _all_but_few(settings.canaries), settings.guesses
    first = ("planned", fixed or _best_guesses(settings, plan, delta), MAIN_SHARE)
    others = [("half", half), ("tenth", half), ("none", all_but_few), ("repetition", half)]
    share = (1 - MAIN_SHARE) / len(others)
    return [first, *((score, fixed or guesses, share) for score, guesses in others)]


def _all_but_few(m: int) -> int:
    """Return how many of ``m`` canaries can be guessed right: as many are in as the coins say, not half."""
    return max(m // 2, m - 4 * math.ceil(math.sqrt(m)))


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
    inside = np.arange(runs) % 2 == 0
    steps = list(laboratory.run_all([world] * runs, np.split(inside, runs)))
    x = np.stack(steps, axis=2)  # (rounds, steps, runs, directions)
    planned = laboratory.ratio(x[..., 0], 1.0)
    said = planned > _best_threshold(settings, plan, runs)
    tests = [_told_apart(said, inside, MAIN_SHARE * settings.error, delta, plan)]
    scores = [laboratory.ratio(x[..., 0], level) for level in LEVELS.values() if level < 1]
    scores += [laboratory.ratio(x[..., k], LEVELS["none"], signals[k]) for k in range(1, len(signals))]
    scores += [canaries.repetition(x[..., 0])]
    error = (1 - MAIN_SHARE) / len(scores) * settings.error
    return _best_of(tests + [_learnt(score, inside, error, delta, plan) for score in scores])


def _learnt(score: np.ndarray, inside: np.ndarray, error: float, delta: float, plan: Plan) -> _Outcome:
    """Test with a threshold from the first quarter of the runs, on the others.

    Nobody can know beforehand what the scores of a broken run look like.
    """
    first = np.arange(len(score)) < len(score) // 4
    said = score > _midway(score[first], inside[first])
    return _told_apart(said[~first], inside[~first], error, delta, plan)


def _midway(scores: np.ndarray, inside: np.ndarray) -> float:
    """Return the threshold with the most correct guesses on these runs, the middle one of equals."""
    ordered = np.sort(scores)
    cuts = (ordered[1:] + ordered[:-1]) / 2
    right = ((scores > cuts[:, None]) == inside).sum(axis=1)
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[len(best) // 2]])


def _told_apart(said: np.ndarray, inside: np.ndarray, error: float, delta: float, plan: Plan) -> _Outcome:
    n, m = int(inside.sum()), int((~inside).sum())
    hits, false_alarms = int(said[inside].sum()), int(said[~inside].sum())
    bounds: dict[str, Callable[..., float]] = {
        "clopper-pearson": auditing.clopper_pearson,
        "gaussian": auditing.in_family,
    }
    if plan.noise_multiplier:
        family = auditing.dp_sgd(plan.noise_multiplier, plan.sample_rate, plan.rounds * plan.steps_per_round)
        bounds["dp-sgd"] = functools.partial(auditing.in_family, family=family)
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
    for share in (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, _all_but_few(m) / m):
        guesses = max(2, int(share * m))
        sample = int(share * len(scores))
        right = auditing.correct_guesses(scores, truth, sample) / sample
        bound = auditing.f_dp(guesses, int(right * guesses), m, delta, MAIN_SHARE * settings.error)
        found.append((bound, guesses))
    return max(found)[1]


def _best_threshold(settings: AuditSettings, plan: Plan, n: int) -> float:
    """Return the threshold with the largest Gaussian bound on ``n`` canaries in a rehearsal."""
    inside, outside = _rehearsal(settings, plan, 4000)
    half, found = n // 2, []
    for threshold in np.quantile(np.concatenate([inside, outside]), np.linspace(0.1, 0.9, 17)):
        hits, false_alarms = (round(float(np.mean(s > threshold)) * half) for s in (inside, outside))
        bound = auditing.in_family(hits, half, false_alarms, half, plan.delta, MAIN_SHARE * settings.error)
        found.append((bound, float(threshold)))
    return max(found)[1]


def settings_for(
    prepared: runner.Prepared,
    *,
    party: str | None = None,
    vantage: Vantage = "white-box",
    method: Method = "one-run",
    canaries: int | None = None,
    runs: int | None = None,
    confidence: float = 0.95,
) -> AuditSettings:
    """Return the settings of an audit of a checked scenario, what is None filled in.

    party: by default the first one with DP, else the first one that is not the adversary

    Raises:
        InputError: there is no such party, or it is the adversary itself and the auditor a participant.
    """
    scenario, adversary = prepared.scenario, prepared.adversary
    others = [name for name in prepared.rows if name != adversary]
    if party is None:
        party = next((name for name in others if scenario.dp_of(name)), others[0])
    if party not in prepared.rows:
        raise InputError(f"--party {party}: no such party{suggestion(party, prepared.rows)}")
    if vantage == "participant" and party == adversary:
        raise InputError(f"--party {party}: that is the participant who audits; choose one of {others}")
    return AuditSettings(
        party=party,
        vantage=vantage,
        method=method,
        canaries=CANARIES[vantage] if canaries is None else canaries,
        runs=RUNS[vantage] if runs is None else runs,
        confidence=confidence,
        seed=scenario.seed,
    )


@contextlib.contextmanager
def folder(parent: Path | None, settings: AuditSettings) -> Iterator[Path]:
    """Yield the folder for an audit's run: in ``parent``, or where that is None one that is removed again."""
    if parent is not None:
        yield parent / f"{settings.party}-{settings.vantage}"
        return
    with tempfile.TemporaryDirectory(prefix="fedsim-audit-") as temporary:
        yield Path(temporary)


def audit(
    prepared: runner.Prepared,
    settings: AuditSettings,
    folder: Path,
    workers: int = 1,
    progress: Progress | None = None,
) -> Audit:
    """Audit a party of a checked scenario, in a run made for it in ``folder``, which is absent or empty.

    Raises:
        InputError: the folder is taken, or the party is too small.
        FedsimError: the federation could not go on.
    """
    games = settings.runs if (settings.vantage, settings.method) == ("participant", "many-run") else 1
    scenario = _for_audit(prepared.scenario, games)
    run = runner.prepare(dataclasses.replace(prepared, scenario=scenario), folder)
    if settings.vantage == "participant":
        return _participant(settings, run, list(prepared.rows), workers, progress)
    return _white_box_of_party(settings, run, list(prepared.rows), workers, progress)


def _for_audit(scenario: Scenario, games: int) -> Scenario:
    """Return the scenario with an adversary that does no more than keep what it is sent."""
    harmless = {"attacks": ["loss"], "candidates": 20, "observers": ["participant"], "coalition": []}
    harmless |= {"active": None, "targets": None}
    adversary = scenario.adversary.model_copy(update=harmless)
    return scenario.model_copy(update={"adversary": adversary, "games": games})


def _white_box_of_party(
    settings: AuditSettings, run: RunDirectory, names: list[str], workers: int, progress: Progress | None
) -> Audit:
    scenario, party = run.scenario, settings.party
    records, info = read_party(run.party_folder(0, names.index(party), party))
    module = models.build(scenario.model, records.train.shape, info["classes"], seed=settings.seed)
    plan = plan_of(scenario, party, len(records.train))
    train = training_of(scenario, party)
    return white_box(settings, plan, module, records.train, train=train, workers=workers, progress=progress)


def plan_of(scenario: Scenario, party: str, n: int) -> Plan:
    """Return the party's plan; without DP, one that stands for plain training, seen round by round."""
    dp_settings, rounds = scenario.dp_of(party), scenario.federation.rounds
    if dp_settings is not None:
        return privacy.plan(dp_settings, scenario.training_of(party), n, rounds)
    return Plan(
        sample_rate=1.0,
        expected_batch=float(min(scenario.training.batch, n)),
        steps_per_round=1,
        noise_multiplier=0.0,
        rounds=rounds,
        delta=DPSettings(epsilon=1.0).delta,
        clipping_norm=1.0,
        accountant="prv",
        epsilon=math.inf,
        budget=math.inf,
    )


def training_of(scenario: Scenario, party: str) -> Train:
    """Return a round of the party's training: its own DP-SGD, or plain SGD."""
    dp_settings = scenario.dp_of(party)
    if dp_settings is None:
        return functools.partial(_openly, like=scenario.training_of(party))
    train = functools.partial(dp.train_private, gradients=dp_settings.gradients, device=scenario.device)
    return functools.partial(_from_secure_source, train=train) if dp_settings.secure else train


def _openly(
    module: torch.nn.Module,
    records: Records,
    settings: TrainingSettings,
    plan: Plan,
    *,
    sampling: torch.Generator,
    noise: torch.Generator,
    watch: dp.Watch,
    like: TrainingSettings,
) -> None:
    settings = like.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "l2": 0.0, "lr": settings.lr})
    parameters = [p for p in module.parameters() if p.requires_grad]
    watch(parameters, plan.clipping_norm)
    train_openly(module, records, settings, sampling)
    watch(parameters, plan.clipping_norm)


def _from_secure_source(*arguments: Any, train: Train, **named: Any) -> Any:
    return train(*arguments, **named | {"sampling": None, "noise": None})


def _participant(
    settings: AuditSettings, run: RunDirectory, names: list[str], workers: int, progress: Progress | None
) -> Audit:
    """Audit from what the malicious participant keeps of the federation, one game or several."""
    one_run, games = settings.method == "one-run", run.scenario.games
    m = settings.canaries if one_run else 1
    stream = rng.generator(settings.seed, "audit coins", party=settings.party)
    inside = stream.random((1, m)) < 0.5 if one_run else (np.arange(games) % 2 == 0)[:, None]
    found: list[Mapping[str, np.ndarray]] = []
    plans = []
    for game in range(games):
        planted, n = _plant(run, game, names, settings, inside[game])
        plans.append(plan_of(run.scenario, settings.party, n))
        inprocess.run_game(run, game, workers)
        view = observer.load_view(run.observations(game))
        found.append(canaries.participant_scores(view, planted))
        if progress:
            progress(game + 1, games)
    plan = max(plans, key=lambda each: each.epsilon)
    delta = plan.delta if settings.delta is None else settings.delta
    scores = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    error = settings.error / len(scores)
    if one_run:
        numbers = [settings.guesses] if settings.guesses else [max(2, m // 4), _all_but_few(m)]
        tests = [
            _guessed(score, inside.ravel(), guesses, error / len(numbers), delta)
            for score in scores.values()
            for guesses in numbers
        ]
    else:
        tests = [_learnt(score, inside.ravel(), error, delta, plan) for score in scores.values()]
    return _audit(settings, "participant", _best_of(tests), _upper(plan, delta), delta)


def _plant(
    run: RunDirectory, game: int, names: list[str], settings: AuditSettings, inside: np.ndarray
) -> tuple[Records, int]:
    """Put the canaries of ``inside`` among the party's training records; return all, and their number then.

    The number of training records is public, and told to every party.
    """
    where = names.index(settings.party)
    folder = run.party_folder(game, where, settings.party)
    records, info = read_party(folder)
    stream = rng.generator(settings.seed, "audit canaries", party=settings.party)
    planted = canaries.edge_records(records.heldout, info["classes"], len(inside), stream)
    train = Records.concatenate([records.train, planted.take(inside)])
    write_party(folder, PartyRecords(records.name, train, records.heldout), info)
    sizes = [len(train) if k == where else n for k, n in enumerate(info["sizes"])]
    for partition, name in enumerate(names):
        folder = run.party_folder(game, partition, name)
        records, info = read_party(folder)
        write_party(folder, records, info | {"sizes": sizes})
    return planted, len(train)
