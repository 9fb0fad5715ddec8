"""What an adversary saw of a federation: the only input an attack has.

ParticipantView   an ordinary party; and, by `pool`, a coalition of parties
ServerView        the server, who sees every party's answer, or their mean under secure aggregation
OutsiderView      who can ask the released model, through its output policy

A `ParticipantView` is the view of one ordinary party: the global models it was sent, its own answers, its
own records and the settings that are public. It holds no membership bit of anyone but its owner. The
malicious client writes it as the run goes (`record_*`), a file per round, and reads it back (`load_view`):

    settings.json            what everybody knows
    own.safetensors          the owner's training and held-out records
    round-003.safetensors    w_3, the global model after 3 rounds, as it was sent (round-000: w_0)
    reply-003.safetensors    the owner's answer in round 3, trained from w_2
    assumptions.json         what the adversary is assumed to know and own besides
    auxiliary.safetensors    records that it owns besides
    candidates.safetensors   the records whose membership is asked
    poison.safetensors       what a poisoning adversary adds to its training records
    raised.safetensors       the records whose loss an ascending adversary raises
    ascent-003.safetensors   what an ascending adversary added to its answer in round 3

An accomplice keeps ``own`` and ``reply-003`` alike. What the server keeps has the same form:

    answer-003-001.safetensors   what party 1 answered in round 3, trained from w_2
    sum-003.safetensors          instead, under secure aggregation: the answers' mean, weighted by records
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter, ValidationError

from attacks import signals
from fedsim.data.records import Pool, Records
from fedsim.errors import InputError
from fedsim.files import read_arrays, read_json, write_arrays, write_json
from fedsim.privacy import Plan
from fedsim.scenario import (
    AdversarySettings,
    CentralDPSettings,
    DefenceSettings,
    ModelSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    import torch

Weights = dict[str, np.ndarray]

PROGRESS = "progress.json"

AVERAGING = ("fedavg", "fedprox")
"""The strategies whose new model is the average of the answers, so that one's own part can be taken out."""


@dataclass(frozen=True)
class PublicSettings:
    """What every participant is told.

    input_shape: of one record's features; participants: parties that train in a round; options: the
    strategy's. sizes: training records of each party, in the order of partition ids; privacy: each party's
    DP-SGD, None where it is off; defences: what each party does beside it, None where that is nothing;
    central_dp: the server's, under which all parties weigh the same; own: the adversary's partition id.
    ``training`` is common to all: see `DefenceSettings.applied_to`.
    """

    model: ModelSettings
    input_shape: tuple[int, ...]
    classes: int
    rounds: int
    parties: int
    participants: int
    training: TrainingSettings
    strategy: str
    options: dict[str, float] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    privacy: tuple[Plan | None, ...] = ()
    defences: tuple[DefenceSettings | None, ...] = ()
    central_dp: CentralDPSettings | None = None
    own: int = 0

    @property
    def own_share(self) -> float:
        """The adversary's weight in the average of a round in which it takes part."""
        if self.sizes and self.participants == self.parties and self.central_dp is None:
            return self.sizes[self.own] / sum(self.sizes)
        return 1 / self.participants


@dataclass(frozen=True, eq=False)
class ParticipantView:
    """What one party saw: in round t (1..T) it is sent w_{t−1} and answers, w_t is the answers' aggregate.

    models: round t → w_t, by parameter name; w_T last. Rounds it was not asked in are missing.
    own_replies: round t → the model it answered in round t.
    assumptions: what it is assumed to know and own besides
    auxiliary: records that it owns besides, with their party where it knows it
    candidate_party: (n,) int64, index of each candidate's party, −1 where unknown; None before it is asked
    poison: what a poisoning adversary trains on beside own_train
    ascents: round t → what an ascending adversary added to its answer in round t
    own_party: (n_train,) int64, whose each of own_train is in a coalition; None where all are the owner's
    start: w_0 where it is not one of ``models``; simulations begin with it
    raised: the records whose loss an ascending adversary raises
    """

    settings: PublicSettings
    models: dict[int, Weights]
    own_replies: dict[int, Weights]
    own_train: Records
    own_heldout: Records
    assumptions: AdversarySettings = field(default_factory=AdversarySettings)
    auxiliary: Pool | None = None
    candidate_party: np.ndarray | None = None
    poison: Records | None = None
    ascents: dict[int, Weights] = field(default_factory=dict)
    own_party: np.ndarray | None = None
    start: Weights | None = None
    raised: Records | None = None
    # Several attacks ask for the same logits. The records are kept too, so that their id is not used again.
    _kept: dict[tuple[int, int], tuple[Records, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def initial(self) -> Weights:
        """w_0, which it was sent, whether or not attacks look at it."""
        return self.models[0] if self.start is None else self.start

    @property
    def final_round(self) -> int:
        """The last round whose model was seen."""
        return max(self.models)

    @property
    def final_model(self) -> Weights:
        """The last global model that was seen, w_T in a whole run."""
        return self.models[self.final_round]

    @property
    def trained_rounds(self) -> list[int]:
        """The rounds t ≥ 1 whose w_t was seen, in order."""
        return sorted(t for t in self.models if t > 0)

    def module(self, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """Return the public architecture with these weights, in evaluation mode."""
        return module_of(self.settings, weights)

    def logits(self, t: int, records: Records) -> np.ndarray:
        """Return the answers of w_t on ``records``, (n, classes) float64; computed once."""
        key = (t, id(records))
        if key not in self._kept:
            answers = signals.logits(self.module(self.models[t]), records.features)
            self._kept[key] = (records, answers.astype(np.float32))  # float32 is what the model computed
        return self._kept[key][1].astype(np.float64)

    def others_update(self, t: int) -> Weights | None:
        """Return the others' part of the step w_t − w_{t−1}, float64 by parameter name.

        The owner's part is its share of (own reply − w_{t−1}), n_own / N where all parties take part; else it
        does not know who did, and assumes equal weights. Nothing is taken out in a round it did not answer
        in, nor where the new model is not the average of the answers as they were sent (other strategies,
        and central DP, which clips them). None where either model was not seen.
        """
        if t not in self.models or t - 1 not in self.models:
            return None
        before = {name: array.astype(np.float64) for name, array in self.models[t - 1].items()}
        step = {name: self.models[t][name] - array for name, array in before.items()}
        reply = self.own_replies.get(t)
        if reply is None or self.settings.strategy not in AVERAGING or self.settings.central_dp is not None:
            return step
        share = self.settings.own_share
        return {name: step[name] - share * (reply[name] - array) for name, array in before.items()}

    def as_outsider_of_itself(self) -> ParticipantView:
        """Return the same view with nothing to take out of an update.

        For calibration: on the owner's own records the owner's own update is the signal.
        """
        return replace(self, own_replies={})


@dataclass(frozen=True, eq=False)
class ServerView:
    """What the server saw: w_t, and in each round what it was sent.

    models: t → w_t, of every round. One of the next two is empty:
    answers: round t → partition id → the model that this party answered, trained from w_{t−1}
    sums: round t → the answers' mean, weighted by records; all that secure aggregation reveals
    candidate_party: (n,) int64, index of each candidate's party, −1 where it is not told
    victims: partition ids that a candidate can be of
    """

    settings: PublicSettings
    models: dict[int, Weights]
    answers: dict[int, dict[int, Weights]]
    sums: dict[int, Weights]
    candidate_party: np.ndarray
    victims: tuple[int, ...]


@dataclass(frozen=True)
class OutsiderView:
    """The released model behind its output policy.

    ask: features (n, …) float32 → (n, classes) float64, what is told of the probabilities; NaN: not told
    queries: records that may be asked about, None where there is no limit
    """

    ask: Callable[[np.ndarray], np.ndarray]
    classes: int
    queries: int | None


def module_of(settings: PublicSettings, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Return the public architecture with these weights, in evaluation mode."""
    import torch

    from fedsim import models

    module = models.build(settings.model, settings.input_shape, settings.classes)
    module.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return module.eval()


@dataclass(frozen=True, eq=False)
class Accomplice:
    """What another party shares with the adversary: its records, and round → its answer."""

    partition: int
    train: Records
    heldout: Records
    replies: dict[int, Weights]


def pool(view: ParticipantView, accomplices: Sequence[Accomplice]) -> ParticipantView:
    """Return the coalition's view: ``view`` as if its owner had all of its accomplices' records and answers.

    What is pooled as 'own reply' of round t is the model of which `others_update` takes the owner's share, so
    that it takes out Σ_k share_k · (w^k_t − w_{t−1}) over the coalition's k.
    """
    settings = view.settings
    replies = {settings.own: view.own_replies} | {each.partition: each.replies for each in accomplices}
    factor = {k: replace(settings, own=k).own_share / settings.own_share for k in replies}
    pooled: dict[int, Weights] = {}
    for t in sorted({t for each in replies.values() for t in each if t - 1 in view.models}):
        before = {name: array.astype(np.float64) for name, array in view.models[t - 1].items()}
        answers = [(factor[k], each[t]) for k, each in replies.items() if t in each]
        pooled[t] = {
            name: start + sum(weight * (answer[name] - start) for weight, answer in answers)
            for name, start in before.items()
        }
    trains = [view.own_train, *(each.train for each in accomplices)]
    parties = [settings.own, *(each.partition for each in accomplices)]
    return replace(
        view,
        own_replies=pooled,
        own_train=Records.concatenate(trains),
        own_heldout=Records.concatenate([view.own_heldout, *(each.heldout for each in accomplices)]),
        own_party=np.repeat(parties, [len(train) for train in trains]),
        auxiliary=None if view.auxiliary is None else _beside(view.auxiliary, accomplices),
        _kept={},
    )


def _beside(auxiliary: Pool, accomplices: Sequence[Accomplice]) -> Pool:
    """Return the auxiliary records that are no accomplice's: whose those are is no longer open."""
    known = {key for each in accomplices for side in (each.train, each.heldout) for key in _keys(side)}
    open_rows = np.array([key not in known for key in _keys(auxiliary.records)], dtype=bool)
    return Pool(auxiliary.records.take(open_rows), auxiliary.party[open_rows])


def _keys(records: Records) -> list[bytes]:
    return [
        x.tobytes() + bytes(str(y), "ascii") for x, y in zip(records.features, records.labels, strict=True)
    ]


def record_own(folder: Path, train: Records, heldout: Records) -> None:
    """Write a party's own records."""
    write_arrays(
        folder / "own.safetensors",
        {
            "train_features": train.features,
            "train_labels": train.labels,
            "heldout_features": heldout.features,
            "heldout_labels": heldout.labels,
        },
    )


def record_settings(
    folder: Path,
    settings: PublicSettings,
    own_train: Records,
    own_heldout: Records,
    assumptions: AdversarySettings | None = None,
    auxiliary: Pool | None = None,
) -> None:
    """Write what the owner has before round 1."""
    write_json(folder / "settings.json", TypeAdapter(PublicSettings).dump_python(settings, mode="json"))
    record_own(folder, own_train, own_heldout)
    assumed = assumptions or AdversarySettings()
    write_json(folder / "assumptions.json", assumed.model_dump(mode="json"))
    nothing = Pool(own_train.take(np.arange(0)), np.empty(0, dtype=np.int64))
    write_arrays(folder / "auxiliary.safetensors", (auxiliary or nothing).arrays())


def record_model(folder: Path, round: int, weights: Mapping[str, np.ndarray]) -> None:
    """Write w_t of t = ``round`` as it was sent; writing it again changes nothing."""
    write_arrays(folder / f"round-{round:03d}.safetensors", weights)


def record_reply(folder: Path, round: int, weights: Mapping[str, np.ndarray]) -> None:
    """Write the owner's answer in ``round`` (1..T); writing it again changes nothing."""
    write_arrays(folder / f"reply-{round:03d}.safetensors", weights)


def record_poison(folder: Path, poison: Records) -> None:
    """Write what the owner trains on beside its own records."""
    _write_records(folder / "poison.safetensors", poison)


def record_raised(folder: Path, records: Records) -> None:
    """Write the records whose loss the owner raises."""
    _write_records(folder / "raised.safetensors", records)


def record_ascent(folder: Path, round: int, step: Weights) -> None:
    """Write what the owner added to its answer in ``round``; writing it again changes nothing."""
    write_arrays(folder / f"ascent-{round:03d}.safetensors", step)


def record_answer(folder: Path, round: int, partition: int, weights: Mapping[str, np.ndarray]) -> None:
    """Write what party ``partition`` answered the server in ``round`` (1..T)."""
    write_arrays(folder / f"answer-{round:03d}-{partition:03d}.safetensors", weights)


def record_sum(folder: Path, round: int, answers: Sequence[Weights], sizes: Sequence[float]) -> None:
    """Write the mean of the parties' ``answers``, weighted by ``sizes``, and nothing else of them."""
    mean = {
        name: np.average([answer[name] for answer in answers], axis=0, weights=sizes).astype(np.float32)
        for name in answers[0]
    }
    write_arrays(folder / f"sum-{round:03d}.safetensors", mean)


def record_candidates(folder: Path, candidates: Pool) -> None:
    """Write the records whose membership is asked."""
    write_arrays(folder / "candidates.safetensors", candidates.arrays())


def progress_note(folder: Path) -> Callable[[int, int], None]:
    """Return a function that notes (done, in all) in ``progress.json``, at most twice a second.

    The adversary may work in a process of its own: whoever waits for it reads the note (`fedsim.live`).
    """
    last = 0.0

    def note(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.5 or done == total:
            last = now
            write_json(folder / PROGRESS, {"done": done, "total": total})

    return note


def load_view(folder: Path) -> ParticipantView:
    """Read what the owner kept in ``folder``.

    Raises:
        InputError: a file is missing or corrupt, or no trained model was ever seen.
    """
    file = folder / "settings.json"
    try:
        settings = TypeAdapter(PublicSettings).validate_python(read_json(file))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"cannot read {file}: {key}: {problem['msg'].lower()}") from error
    models = _read_rounds(folder, "round")
    if not any(t > 0 for t in models):
        raise InputError(f"{folder}: no model of a finished round was observed; run at least one round")
    own, asked = folder / "own.safetensors", folder / "candidates.safetensors"
    assumptions, auxiliary = folder / "assumptions.json", folder / "auxiliary.safetensors"
    return ParticipantView(
        settings,
        models,
        _read_rounds(folder, "reply"),
        _records(own, "train_"),
        _records(own, "heldout_"),
        AdversarySettings.model_validate(read_json(assumptions)),
        _pool(auxiliary),
        _pool(asked).party if asked.exists() else None,
        _records_if_any(folder / "poison.safetensors"),
        _read_rounds(folder, "ascent"),
        raised=_records_if_any(folder / "raised.safetensors"),
    )


def load_accomplice(folder: Path, partition: int) -> Accomplice:
    """Read what party ``partition`` shared in ``folder``.

    Raises:
        InputError: a file is missing or corrupt.
    """
    own = folder / "own.safetensors"
    replies = _read_rounds(folder, "reply")
    return Accomplice(partition, _records(own, "train_"), _records(own, "heldout_"), replies)


def load_server_view(
    folder: Path,
    settings: PublicSettings,
    models: dict[int, Weights],
    candidate_party: np.ndarray,
    victims: Sequence[int],
) -> ServerView:
    """Read what the server kept in ``folder``; the other arguments are those of the view.

    Raises:
        InputError: nothing was kept, or a file is corrupt.
    """
    answers: dict[int, dict[int, Weights]] = {}
    for file in sorted(folder.glob("answer-*.safetensors")):
        t, partition = map(int, file.stem.split("-")[1:])
        answers.setdefault(t, {})[partition] = read_arrays(file)
    sums = _read_rounds(folder, "sum")
    if not answers and not sums:
        raise InputError(f"{folder}: nothing was kept; observer 'server' must be named before the run")
    return ServerView(settings, models, answers, sums, candidate_party, tuple(victims))


def load_candidates(folder: Path) -> Records:
    """Read the candidates kept in ``folder``.

    Raises:
        InputError: the file is missing or corrupt.
    """
    return _pool(folder / "candidates.safetensors").records


def _pool(file: Path) -> Pool:
    try:
        return Pool.from_arrays(read_arrays(file))
    except KeyError as error:
        raise InputError(f"cannot read {file}: it has no array {error}") from error


def _write_records(file: Path, records: Records) -> None:
    write_arrays(file, {"features": records.features, "labels": records.labels})


def _records(file: Path, prefix: str = "") -> Records:
    arrays = read_arrays(file)
    try:
        return Records(arrays[f"{prefix}features"], arrays[f"{prefix}labels"])
    except KeyError as error:
        raise InputError(f"cannot read {file}: it has no array {error}") from error


def _records_if_any(file: Path) -> Records | None:
    return _records(file) if file.exists() else None


def _read_rounds(folder: Path, kind: str) -> dict[int, Weights]:
    found = ((re.fullmatch(rf"{kind}-(\d+)", path.stem), path) for path in folder.glob("*.safetensors"))
    rounds = {int(match[1]): path for match, path in found if match}
    return {round: read_arrays(rounds[round]) for round in sorted(rounds)}
