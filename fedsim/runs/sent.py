"""The update that a party would send of a few records: local training as the run's, under a protection."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from attacks.reconstruction.gradient import LocalSteps
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError, suggestion
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import make_plan
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import DefenceSettings, DPSettings
from fedsim.core.training import dp, sgd, updates
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from fedsim.runs.observers import victims_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Setting:
    """What a party sends, and to whom.

    batch: records of one local step; epochs: passes over them (one step each); protection: of `PROTECTIONS`
    """

    batch: int
    epochs: int = 1
    protection: str = "none"


PROTECTIONS = ("none", "clipped", "sparsified", "ε = 8", "ε = 1", "secure sum", "participant")
"""'secure sum': the server sees the sum of all parties; 'participant': a party, of all others."""

SETTINGS: tuple[Setting, ...] = (
    *(Setting(batch, epochs) for epochs in (1, 4) for batch in (1, 4, 16)),
    *(Setting(batch, 1, name) for name in PROTECTIONS[1:] for batch in (1, 4)),
)

CLIP, SPARSE, DELTA = 0.1, 0.1, 1e-5
"""Norm of a clipped update, share of entries that a sparsified one keeps, δ of the two ε."""


def settings_of(batches: Sequence[int], epochs: Sequence[int], protections: Sequence[str]) -> list[Setting]:
    """Return all combinations, with defaults for what is not chosen; where nothing is, `SETTINGS`.

    Raises:
        InputError: unknown protection.
    """
    for name in protections:
        if name not in PROTECTIONS:
            raise InputError(f"--protection {name}: no such protection{suggestion(name, PROTECTIONS)}")
    if not (batches or epochs or protections):
        return list(SETTINGS)
    return [
        Setting(batch, count, name)
        for name in protections or PROTECTIONS
        for count in epochs or (1, 4)
        for batch in batches or (1, 4, 16)
    ]


def training_records(run: RunDirectory, game: int) -> dict[str, Records]:
    """Return every party's training records by name: victims first, the adversary's last."""
    names, victims = list(run.manifest["parties"]), victims_of(run)
    order = sorted(range(len(names)), key=lambda k: (k not in victims, names[k] == run.manifest["adversary"]))
    folders = ((names[k], run.party_folder(game, k, names[k])) for k in order)
    return {name: read_party(folder)[0].train for name, folder in folders}


def sent(
    run: RunDirectory,
    module: torch.nn.Module,
    setting: Setting,
    trains: dict[str, Records],
    purpose: str,
    stream: np.random.Generator,
) -> tuple[Records, dict[str, np.ndarray], LocalSteps]:
    """Return one victim's batch, the update that is seen of it, and what is public of the training."""
    names = list(trains)
    victim = names[int(stream.integers(len(victims_of(run))))]
    senders = {"secure sum": names, "participant": names[:-1]}.get(setting.protection, [victim])
    batches = {
        name: trains[name].take(stream.permutation(len(trains[name]))[: setting.batch]) for name in senders
    }
    answers = [
        _update(run, module, batch, setting, len(trains[name]), f"{purpose}/{name}")
        for name, batch in batches.items()
    ]
    update = {name: np.mean([one[name] for one in answers], axis=0) for name in answers[0]}
    together = sum(len(batch) for batch in batches.values())
    local = LocalSteps(together, together, setting.epochs, run.scenario.training.lr)
    return batches[victim], update, local


def _update(
    run: RunDirectory, module: torch.nn.Module, batch: Records, setting: Setting, n: int, purpose: str
) -> dict[str, np.ndarray]:
    """Return the update that a party with ``n`` training records sends of one batch, by parameter name."""
    trained, before = copy.deepcopy(module), weights_of(module)
    steps = {"batch": len(batch), "epochs": setting.epochs, "steps": None}
    local = LocalTraining(run.scenario.training.model_copy(update=steps))
    order, noise = (
        rng.torch_generator(run.scenario.seed, f"{purpose}/{what}") for what in ("order", "noise")
    )
    draws = PartyDraws(order, noise)
    if setting.protection.startswith("ε"):
        epsilon = float(setting.protection.rpartition(" ")[2])
        rounds = run.scenario.federation.rounds
        plan = make_plan(DPSettings(epsilon=epsilon, delta=DELTA), run.scenario.training, n, rounds)
        once = replace(
            plan, sample_rate=1.0, expected_batch=float(len(batch)), steps_per_round=setting.epochs
        )
        dp.train_private(trained, batch, local, once, draws)
    else:
        sgd.train(trained, batch, local, draws)
    after = weights_of(trained)
    update = {name: after[name].astype(np.float64) - before[name] for name, _ in module.named_parameters()}
    defence = {
        "clipped": DefenceSettings(clip_update=CLIP),
        "sparsified": DefenceSettings(sparsify=SPARSE),
    }.get(setting.protection)
    if defence is None:
        return update
    shaped = updates.shaped(update, defence, draws)
    return {name: array.astype(np.float64) for name, array in shaped.items()}
