"""`fedsim audit`: an empirical lower bound on one party's ε, beside the accountant's upper bound.

white-box    the auditor sees every step of the party's training, and plants gradient canaries
             (`fedsim.audit.canaries`): the tightest known.
participant  the auditor is the malicious participant: it sees the models that it is sent, no more, and the
             canaries are records of the party.

An audit makes a run of its own in a folder of its own: no canary ever comes near a real run. What follows the
noise, and defences without a guarantee, are left out of the white box: they do not count towards ε.

one-run      many canaries at once, each in or out on the toss of a coin.
many-run     a run for each guess, with one canary or without it.

Lower above upper means that the implementation, or its accounting, is broken.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.audit import canaries
from fedsim.audit.settings import Audit, AuditSettings, Outcome
from fedsim.audit.verdict import (
    LEVELS,
    MAIN_SHARE,
    audit_of,
    best_guesses,
    best_of,
    best_threshold,
    guessed,
    learnt,
    nearly_all,
    told_apart,
    upper,
)
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.parallel import Workers
from fedsim.core.privacy.plan import Plan
from fedsim.core.training import dp
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

Progress = Callable[[int, int], object]
World = canaries.GradientCanaries | canaries.LoneCanary

PER_RUN = 250
"""Gradient canaries of one run: with more, the one-hot inputs would cost more than the run."""


Train = Callable[..., Any]
"""One round of training: ``train(module, records, local, plan, draws, *, watch)``.

`core.training.dp.train_private`, or what stands in for it. Where clipping adapts, it takes
``clipping_norm`` too, and what it returns has the next one; where the unit is a person, ``person`` (n,) int,
as `fedsim.audit.party.train_persons_as_set` does.
"""


@dataclass(frozen=True)
class Target:
    """What is audited: a party's training.

    module: the party's; its weights are where the training starts, and it is left as it is
    records: the party's own
    train: one round of DP-SGD, called ``plan.rounds`` times a run
    person: (n,) int, whose each of the records is, where the unit is a person
    """

    plan: Plan
    module: torch.nn.Module
    records: Records
    train: Train = dp.train_private
    person: np.ndarray | None = None

    @property
    def units(self) -> int:
        """Number of records, or of persons where they are the unit."""
        return len(self.records) if self.person is None else len(np.unique(self.person))

    def owners(self, own: int, planted: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``person`` of the first ``own`` records and then of canaries' (n,), nothing if by record."""
        if self.person is None:
            return {}
        return {"person": np.concatenate([self.person[:own], self.person.max() + 1 + planted])}


def white_box(
    settings: AuditSettings, target: Target, workers: int = 1, progress: Progress | None = None
) -> Audit:
    """Audit the training on the records and canaries, with the plan's sample rate, noise and steps.

    workers: processes to share the runs; ``target`` is pickled then
    """
    delta = target.plan.delta if settings.delta is None else settings.delta
    measure = _one_run if settings.method == "one-run" else _many_run
    outcome = measure(settings, delta, _Runs(settings, target, workers, progress))
    return audit_of(settings, "white-box", outcome, upper(target.plan, delta), delta)


@dataclass(frozen=True)
class _Runs:
    """Makes the runs of the training under audit on canaries."""

    settings: AuditSettings
    target: Target
    workers: int
    progress: Progress | None

    @property
    def plan(self) -> Plan:
        return self.target.plan

    def run_all(self, worlds: Sequence[World], inside: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield `run` of every world, in order, whatever process makes it."""
        runs = list(zip(worlds, inside, range(len(worlds)), strict=True))
        if self.workers == 1 or not _portable(self.target.module):
            yield from self._counted((self.run(*run) for run in runs), len(runs))
            return
        alone = dataclasses.replace(self, progress=None)
        with Workers(min(self.workers, len(runs))) as pool:
            yield from self._counted(pool.map(alone.run, runs), len(runs))

    def _counted(self, results: Iterator[np.ndarray], total: int) -> Iterator[np.ndarray]:
        for done, result in enumerate(results, start=1):
            yield result
            if self.progress:
                self.progress(done, total)

    def run(self, world: World, inside: np.ndarray, number: int) -> np.ndarray:
        """Train once, with the canaries of ``inside``; return what was read, see `canaries.Readout.steps`."""
        torch.set_num_threads(1)
        module, records = copy.deepcopy(world.module), world.with_canaries(inside)
        owners = self.target.owners(len(world.records), canaries.planted(inside, world.each))
        readout = canaries.Readout(world, self.plan)
        adapted: dict[str, float] = {}
        for round in range(self.plan.rounds):
            readout.start_round()
            report = self.target.train(
                module,
                records,
                LocalTraining(world.settings),
                self.plan,
                PartyDraws(
                    self._stream("audit sampling", number, round), self._stream("audit noise", number, round)
                ),
                watch=readout.watch,
                **owners,
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


def _one_run(settings: AuditSettings, delta: float, runs: _Runs) -> Outcome:
    m, target, plan = settings.canaries, runs.target, runs.plan
    parts = np.array_split(np.arange(m), -(-m // _per_run(plan, target.units)))
    coins = rng.generator(settings.seed, "audit coins", party=settings.party).random(m) < 0.5
    scores = {name: np.zeros(m) for name in (*LEVELS, "repetition")}
    of_size = functools.cache(
        lambda size: canaries.gradient_canaries(target.module, target.records, size, plan, settings.records)
    )
    readings = runs.run_all([of_size(len(part)) for part in parts], [coins[part] for part in parts])
    for part, x in zip(parts, readings, strict=True):
        for name, level in LEVELS.items():
            scores[name][part] = runs.ratio(x, level)
        scores["repetition"][part] = canaries.repetition(x)
    best = best_of(
        [
            guessed(scores[score], coins, guesses, share * settings.error, delta)
            for score, guesses, share in _one_run_tests(settings, plan, delta)
        ]
    )
    guess = scores["planned"] > best_threshold(settings, plan, m)
    estimates = told_apart(guess, coins, settings.error, delta, plan).lower
    proved = max(best.lower.values())
    return dataclasses.replace(best, estimate={k: value for k, value in estimates.items() if value > proved})


def _per_run(plan: Plan, n: int) -> int:
    """Return how many canaries a run has; where C adapts, so few that it follows the own records instead."""
    return PER_RUN if plan.clipping == "flat" else max(2, min(PER_RUN, n // 4))


def _one_run_tests(settings: AuditSettings, plan: Plan, delta: float) -> list[tuple[str, int, float]]:
    """Return (score, guesses, share of the error) of every test, fixed before the run.

    Few guesses are best against noise as planned; but their bound ends where all of them are right, and only
    many can tell how broken a broken one is. So the planned score is tried with more guesses as well.
    """
    m, fixed = settings.canaries, settings.guesses
    first = fixed or best_guesses(settings, plan, delta)
    more = [] if fixed else [guesses for guesses in (2 * first, 4 * first, 8 * first) if guesses <= m // 2]
    main = 0.8 * MAIN_SHARE if more else MAIN_SHARE
    others = [("half", m // 2), ("tenth", m // 2), ("none", nearly_all(m)), ("repetition", m // 2)]
    share = (1 - MAIN_SHARE) / len(others)
    return [
        ("planned", first, main),
        *(("planned", guesses, (MAIN_SHARE - main) / len(more)) for guesses in more),
        *((score, fixed or guesses, share) for score, guesses in others),
    ]


def _many_run(settings: AuditSettings, delta: float, runs: _Runs) -> Outcome:
    target, plan, count = runs.target, runs.plan, settings.runs
    stream = rng.generator(settings.seed, "lone canary", party=settings.party)
    world = canaries.lone_canary(target.module, target.records.shape, plan, stream, settings.records)
    signals = world.signals
    inside = np.arange(count) % 2 == 0
    steps = list(runs.run_all([world] * count, np.split(inside, count)))
    x = np.stack(steps, axis=2)  # (rounds, steps, runs, directions)
    planned = runs.ratio(x[..., 0], 1.0)
    guess = planned > best_threshold(settings, plan, count)
    tests = [told_apart(guess, inside, MAIN_SHARE * settings.error, delta, plan)]
    scores = [runs.ratio(x[..., 0], level) for level in LEVELS.values() if level < 1]
    scores += [runs.ratio(x[..., k], LEVELS["none"], signals[k]) for k in range(1, len(signals))]
    scores += [canaries.repetition(x[..., 0])]
    error = (1 - MAIN_SHARE) / len(scores) * settings.error
    return best_of(tests + [learnt(score, inside, error, delta, plan) for score in scores])
