"""The folder in which the adversary keeps what it saw: written while the federation runs, read by attacks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings, Weights
from fedsim.core.data.records import Pool, Records
from fedsim.core.data.store import PartyRecords, arrays_of
from fedsim.core.errors import InputError
from fedsim.core.files import keep_arrays, read_arrays, read_json, write_arrays, write_json
from fedsim.core.scenario.adversary import AdversarySettings

PROGRESS = "progress.json"


def record_own(folder: Path, own: PartyRecords) -> None:
    """Write a party's own records, and whose each is."""
    write_arrays(folder / "own.safetensors", arrays_of(own, "_"))


def read_persons(file: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read whose each of a party's training and held-out records is, None where nobody is named."""
    arrays = read_arrays(file)
    return arrays.get("train_person"), arrays.get("heldout_person")


def record_settings(
    folder: Path,
    settings: PublicSettings,
    own: PartyRecords,
    assumptions: AdversarySettings | None = None,
    auxiliary: Pool | None = None,
) -> None:
    """Write what the owner has before round 1."""
    write_json(folder / "settings.json", TypeAdapter(PublicSettings).dump_python(settings, mode="json"))
    record_own(folder, own)
    assumed = assumptions or AdversarySettings()
    write_json(folder / "assumptions.json", assumed.model_dump(mode="json"))
    nothing = Pool(own.train.take(np.arange(0)), np.empty(0, dtype=np.int64))
    write_arrays(folder / "auxiliary.safetensors", (auxiliary or nothing).arrays())


def record_model(folder: Path, round: int, weights: Mapping[str, np.ndarray]) -> None:
    """Write w_t of t = ``round`` as it was sent; writing it again changes nothing."""
    keep_arrays(folder / f"round-{round:03d}.safetensors", weights)


def record_start(folder: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write the weights from which simulations begin, where w_0 was not seen."""
    write_arrays(folder / "start.safetensors", weights)


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


def record_candidates(folder: Path, candidates: Pool) -> None:
    """Write the records whose membership is asked."""
    write_arrays(folder / "candidates.safetensors", candidates.arrays())


def progress_note(folder: Path) -> Callable[[int, int], None]:
    """Return a function that notes (done, in all) in ``progress.json``, at most twice a second.

    The adversary may work in a process of its own: whoever waits for it reads the note. Beside both numbers
    it holds what was done when this work began (``first``: read from a cache), and the ``seconds`` since
    then, so that the time left is reckoned from the start of the work and not of the program. Another
    total, or a lower number, begins another work.
    """
    last, began, first, before = 0.0, time.monotonic(), 0, (0, 0)

    def note(done: int, total: int) -> None:
        nonlocal last, began, first, before
        now = time.monotonic()
        if total != before[1] or done < before[0]:
            began, first, last = now, done, 0.0
        before = done, total
        if now - last >= 0.5 or done == total:
            last = now
            entry = {"done": done, "total": total, "first": first, "seconds": round(now - began, 3)}
            write_json(folder / PROGRESS, entry)

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
    models = read_rounds(folder, "round")
    if not any(t > 0 for t in models):
        raise InputError(f"{folder}: no model of a finished round was observed; run at least one round")
    own, candidates = folder / "own.safetensors", folder / "candidates.safetensors"
    start = folder / "start.safetensors"
    assumptions, auxiliary = folder / "assumptions.json", folder / "auxiliary.safetensors"
    asked = _pool(candidates) if candidates.exists() else None
    train_person, heldout_person = read_persons(own)
    return ParticipantView(
        settings,
        models,
        read_rounds(folder, "reply"),
        read_records(own, "train_"),
        read_records(own, "heldout_"),
        AdversarySettings.model_validate(read_json(assumptions)),
        _pool(auxiliary),
        None if asked is None else asked.party,
        _records_if_any(folder / "poison.safetensors"),
        read_rounds(folder, "ascent"),
        start=read_arrays(start) if start.exists() else None,
        raised=_records_if_any(folder / "raised.safetensors"),
        candidate_person=None if asked is None else asked.person,
        own_train_person=train_person,
        own_heldout_person=heldout_person,
    )


def load_candidates(folder: Path) -> Records:
    """Read the candidates kept in ``folder``.

    Raises:
        InputError: the file is missing or corrupt.
    """
    return load_candidate_pool(folder).records


def load_candidate_pool(folder: Path) -> Pool:
    """Read the candidates kept in ``folder``, with their party where it is known.

    Raises:
        InputError: the file is missing or corrupt.
    """
    return _pool(folder / "candidates.safetensors")


def _pool(file: Path) -> Pool:
    try:
        return Pool.from_arrays(read_arrays(file))
    except KeyError as error:
        raise InputError(f"cannot read {file}: it has no array {error}") from error


def _write_records(file: Path, records: Records) -> None:
    write_arrays(file, {"features": records.features, "labels": records.labels})


def read_records(file: Path, prefix: str = "") -> Records:
    """Read records from the arrays ``prefix``features and ``prefix``labels of a file.

    Raises:
        InputError: the file is missing or corrupt.
    """
    arrays = read_arrays(file)
    try:
        return Records(arrays[f"{prefix}features"], arrays[f"{prefix}labels"])
    except KeyError as error:
        raise InputError(f"cannot read {file}: it has no array {error}") from error


def _records_if_any(file: Path) -> Records | None:
    return read_records(file) if file.exists() else None


def read_rounds(folder: Path, kind: str) -> dict[int, Weights]:
    """Read the files ``kind``-001.safetensors and so on: round → weights, in order."""
    matches = ((re.fullmatch(rf"{kind}-(\d+)", path.stem), path) for path in folder.glob("*.safetensors"))
    rounds = {int(match[1]): path for match, path in matches if match}
    return {round: read_arrays(rounds[round]) for round in sorted(rounds)}
