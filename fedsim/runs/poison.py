"""What a poisoning that is aimed by membership does to a finished run: its last rounds are replayed with it.

The run's own parties train again from the model before the last rounds, with the same draws, so that an
honest replay is the run itself, bit for bit. What differs is the adversary's answer alone, trained without
DP whatever the run says of it, and, where a robust strategy is tried as a defence, the server's aggregation
(each has an honest replay of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from flwr.app import ConfigRecord, Context, Message, RecordDict

from attacks.attributes.problem import population
from attacks.membership import update_regression
from attacks.poisoning import targeted
from attacks.poisoning.targeted import Kind
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from attacks.views.settings import Weights
from clients import messages, participant
from clients.party import Party, party_of
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.engines import flower_internals, inprocess
from fedsim.evaluation import poisoning as judge
from fedsim.runs.beyond import PlayedGame, games_of
from fedsim.server import strategy

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

Progress = Callable[[int, int], object]

DEFENCES = ("fedavg", "fedmedian", "fedtrimmedavg", "krum")
AIMS = ("called members", "random")
BLEND = 0.5
"""How far from its honest update a stealthy adversary goes, over the length of that."""


@dataclass(frozen=True)
class Attempt:
    """One way to poison. stealth: whether the update is kept near to the honest one."""

    kind: Kind
    aim: str
    stealth: bool


ATTEMPTS = tuple(
    Attempt(kind, aim, stealth) for kind in targeted.KINDS for aim in AIMS for stealth in (False, True)
)


@dataclass(frozen=True)
class Budget:
    """What the adversary may spend: targets, poisoned records for each, and rounds in which it does."""

    targets: int = 8
    copies: int = 2
    rounds: int = 5


def poison(
    run: RunDirectory,
    budget: Budget = Budget(),
    defences: Sequence[str] = DEFENCES,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Replay the last rounds with each kind of poison, aim and defence, and write ``poisoning.parquet``.

    Columns: those of `fedsim.evaluation.poisoning`.

    Raises:
        InputError: the run cannot be replayed: see `_check`.
    """
    _check(run, budget)
    inprocess.quiet_flower()
    flower_internals.assume_identity(1)
    games, judged = games_of(run), []
    total = len(games) * len(defences) * (1 + len(ATTEMPTS))
    done = iter(range(1, total + 1))
    for played in games:
        game = _Game.of(run, played, budget)
        for defence in defences:
            clean = game.replay(defence)
            progress(next(done), total)
            for attempt in ATTEMPTS:
                poisoned = game.replay(defence, attempt)
                judged.append(game.judged(defence, attempt, clean, poisoned))
                progress(next(done), total)
    table = judge.table(judged)
    run.write_table("poisoning", table)
    return table


def _check(run: RunDirectory, budget: Budget) -> None:
    """Refuse what is not replayed.

    Raises:
        InputError: too few rounds, not all parties in each, a strategy with a memory, an adversary that acts
            already, central DP, or DP whose clipping norm adapts from round to round.
    """
    scenario, names = run.scenario, list(run.manifest["parties"])
    federation = scenario.federation
    if budget.rounds >= federation.rounds:
        raise InputError(
            f"--rounds {budget.rounds}: the run has {federation.rounds}, and targets are chosen by what is "
            f"seen before; valid: 1 … {federation.rounds - 1}"
        )
    problems = {
        f"federation.fraction = {federation.fraction:g}": federation.fraction < 1,
        f"federation.strategy = '{federation.strategy}'": federation.strategy not in ("fedavg", "fedprox"),
        "federation.central_dp": federation.central_dp is not None,
        f"adversary.active = '{scenario.adversary.active}'": scenario.adversary.active is not None,
        "dp.clipping = 'adaptive'": any(
            (dp := scenario.dp_of(name)) is not None and dp.clipping == "adaptive" for name in names
        ),
    }
    for key, holds in problems.items():
        if holds:
            raise InputError(f"{run.path}: {key} is not replayed round by round; poison a run without it")


@dataclass(frozen=True, eq=False)
class Replayed:
    """A replay's last model, and what the adversary's answers looked like beside honest ones, by round.

    norm: the adversary's ‖Δ‖ over the median of the others'; cosine: of its Δ with the mean of theirs, less
    the median cosine of each other party with the mean of the rest
    """

    model: Weights
    norm: float
    cosine: float


@dataclass(frozen=True, eq=False)
class _Game:
    """One game that is replayed. start: the last round before the poison; called: targets by aim."""

    run: RunDirectory
    played: PlayedGame
    budget: Budget
    start: int
    parties: list[Party]
    adversary: int
    aimed: dict[str, np.ndarray]

    @staticmethod
    def of(run: RunDirectory, played: PlayedGame, budget: Budget) -> _Game:
        names = list(run.manifest["parties"])
        contexts = [_context(run, played.game, k) for k in range(len(names))]
        start = run.last_round(played.game) - budget.rounds
        aimed = _aimed(run, played, start, budget.targets)
        own = names.index(str(run.manifest["adversary"]))
        return _Game(run, played, budget, start, [party_of(c) for c in contexts], own, aimed)

    def replay(self, defence: str, attempt: Attempt | None = None) -> Replayed:
        """Return the federation's last rounds, the adversary poisoning where there is an attempt."""
        model: Weights = self.run.read_model(self.played.game, self.start)
        built, shown = self._strategy(defence), []
        poisoned = None if attempt is None else self._poison(attempt, model)
        for round in range(self.start + 1, self.start + self.budget.rounds + 1):
            answers = [self._answer(party, model, round) for party in self.parties]
            if poisoned is not None and attempt is not None:
                answers[self.adversary] = self._poisoned(poisoned, attempt, answers, model, round)
            shown.append(_conduct(answers, self.adversary, model))
            model = self._aggregated(built, model, answers, round)
        norm, cosine = np.mean(shown, axis=0)
        return Replayed(model, float(norm), float(cosine))

    def _strategy(self, defence: str) -> Strategy:
        federation = self.run.scenario.federation
        options = federation.options if defence == federation.strategy else {}
        if defence == "krum":
            options = {"num_malicious_nodes": 1}
        # FedProx aggregates as FedAvg; its pull is in the parties' messages.
        name = federation.strategy if defence == "fedavg" else defence
        settings = federation.model_copy(
            update={"strategy": name, "options": federation.options if defence == "fedavg" else options}
        )
        return strategy.build(settings, self.run.scenario.training)

    def _poison(self, attempt: Attempt, model: Weights) -> Party:
        """Return the adversary's party with the poison among its training records."""
        party, view = self.parties[self.adversary], self.played.view
        purpose = f"poison/{attempt.kind}/{attempt.aim}"
        stream = rng.generator(self.run.scenario.seed, purpose, game=self.played.game)
        targets = self.played.candidates.take(self.aimed[attempt.aim])
        extra = targeted.poison(
            targets,
            attempt.kind,
            self.budget.copies,
            view.module(model),
            population(view),
            party.classes,
            stream,
        )
        train, person = Records.concatenate([party.records.train, extra]), party.records.train_person
        if person is not None:
            person = np.concatenate([person, -1 - np.arange(len(extra))])
        records = replace(party.records, train=train, train_person=person)
        # Whoever poisons does not clip itself: the others' DP is what is left of it.
        openly = party.scenario.model_copy(update={"dp": {**party.scenario.dp, party.name: "off"}})
        return replace(party, records=records, scenario=openly)

    def _poisoned(
        self, poisoned: Party, attempt: Attempt, answers: Sequence[Weights], model: Weights, round: int
    ) -> Weights:
        answer = self._answer(poisoned, model, round)
        if not attempt.stealth:
            return answer
        honest = _update(answers[self.adversary], model)
        sent = targeted.blended(honest, _update(answer, model), BLEND)
        return {name: (array + sent[name]).astype(array.dtype) for name, array in model.items()}

    def _answer(self, party: Party, model: Weights, round: int) -> Weights:
        config: dict[str, float | int] = {"server-round": round}
        federation = self.run.scenario.federation
        if federation.strategy == "fedprox":
            config["proximal-mu"] = float(federation.options.get("proximal_mu", 0.0))
        content = RecordDict({"arrays": messages.to_arrays(model), "config": ConfigRecord(dict(config))})
        message = Message(content, party.partition + 1, "train")
        context = _context(self.run, self.played.game, party.partition)
        return messages.to_numpy(messages.arrays_in(participant.train(party, message, context)))

    def _aggregated(self, built: Strategy, model: Weights, answers: Sequence[Weights], round: int) -> Weights:
        replies = []
        for party, answer in zip(self.parties, answers, strict=True):
            # The poison is not announced: the weight is that of the honest records.
            metrics = messages.metrics({"num-examples": len(party.records.train)})
            content = RecordDict({"arrays": messages.to_arrays(answer), "metrics": metrics})
            replies.append(Message(content, reply_to=Message(RecordDict(), party.partition + 1, "train")))
        seed, game = self.run.scenario.seed, self.played.game
        arrays = strategy.aggregate(built, round, replies, seed, game)
        assert arrays is not None
        return messages.to_numpy(strategy.cast_like(arrays, messages.to_arrays(model)))

    def judged(self, defence: str, attempt: Attempt, clean: Replayed, poisoned: Replayed) -> judge.Case:
        """Return what the judge reads of one poisoned replay and its honest one."""
        view, rows = self.played.view, self.aimed[attempt.aim]
        targets = self.played.candidates.take(rows)
        heldout = Records.concatenate([party.records.heldout for party in self.parties])
        p, right, accuracy = [], [], []
        for replayed in (clean, poisoned):
            module = view.module(replayed.model)
            logits = outputs.logits(module, targets.features)
            p.append(np.exp(-outputs.loss(logits, targets.labels)))
            right.append(outputs.correct(logits, targets.labels) > 0)
            others = outputs.logits(module, heldout.features)
            accuracy.append(float(outputs.correct(others, heldout.labels).mean()))
        return judge.Case(
            (defence, attempt.kind, attempt.aim, "stealthy" if attempt.stealth else "open"),
            damage=p[0] - p[1],
            turned=right[0] & ~right[1],
            member=self.played.member[rows],
            accuracy=accuracy[0] - accuracy[1],
            norm=poisoned.norm - clean.norm,
            cosine=poisoned.cosine - clean.cosine,
        )


def _aimed(run: RunDirectory, played: PlayedGame, start: int, targets: int) -> dict[str, np.ndarray]:
    """Return the targets by aim, as places of candidates, from what was seen until round ``start``."""
    view = played.view
    seen: ParticipantView = replace(
        view, models={t: w for t, w in view.models.items() if t <= start}, _kept={}
    )
    seed, count = run.scenario.seed, min(targets, len(played.candidates))
    scores = update_regression.score(
        seen, played.candidates, rng.generator(seed, "poison/membership", game=played.game)
    )
    chance = rng.generator(seed, "poison/random aim", game=played.game)
    return {
        "called members": np.argsort(-scores, kind="stable")[:count],
        "random": chance.permutation(len(played.candidates))[:count],
    }


def _context(run: RunDirectory, game: int, partition: int) -> Context:
    config: dict[str, bool | float | int | str] = {"run": str(run.path), "game": game}
    return Context(1, partition + 1, {"partition-id": partition}, RecordDict(), config)


def _update(answer: Weights, model: Weights) -> Weights:
    return {name: answer[name].astype(np.float64) - array for name, array in model.items()}


def _conduct(answers: Sequence[Weights], adversary: int, model: Weights) -> tuple[float, float]:
    """Return how the adversary's update differs from the others': see `Replayed`."""
    flat = np.stack([np.concatenate([u.ravel() for u in _update(a, model).values()]) for a in answers])
    norms = np.linalg.norm(flat, axis=1)
    others = [k for k in range(len(flat)) if k != adversary]

    def cosine(k: int) -> float:
        rest = flat[[other for other in others if other != k]].mean(axis=0)
        return float(flat[k] @ rest / max(norms[k] * np.linalg.norm(rest), 1e-30))

    usual = float(np.median([cosine(k) for k in others]))
    return float(norms[adversary] / max(float(np.median(norms[others])), 1e-30)), cosine(adversary) - usual
