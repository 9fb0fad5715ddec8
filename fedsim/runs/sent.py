"""The update that a party would send of a few records: local training as the run's, under a protection."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks.reconstruction.gradient import LocalSteps
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords, read_party
from fedsim.core.errors import InputError, suggestion
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import make_plan
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings, DPSettings
from fedsim.core.scenario.settings import Scenario
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp, sgd, updates
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from fedsim.runs.observers import victims_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Setting:
    """What a party sends, and to whom.

    batch: records of one local step; epochs: passes over all; protection: of `PROTECTIONS`
    minibatches: steps of one epoch, each on other records; optimizer: of `OPTIMIZERS`
    """

    batch: int
    epochs: int = 1
    protection: str = "none"
    minibatches: int = 1
    optimizer: str = "own"

    @property
    def records(self) -> int:
        """Of one party."""
        return self.batch * self.minibatches


PROTECTIONS = ("none", "own", "clipped", "sparsified", "ε = 8", "ε = 1", "secure sum", "participant")
"""'own': what the party does in the run, DP and defences; 'secure sum': the server sees the sum of all;
'participant': a party, of all others. FedProx's term, which is the server's, is in every one."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "own": {},
    "sgd": {"optimizer": "sgd", "momentum": 0.0},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "adam": {"optimizer": "adam", "momentum": 0.0, "lr": 0.01},
}
"""By which a party makes its steps: as in the run, or otherwise; each starts anew with an update."""

SETTINGS: tuple[Setting, ...] = (
    *(Setting(batch, epochs) for epochs in (1, 4) for batch in (1, 4, 16)),
    *(Setting(batch, 1, name) for name in PROTECTIONS[1:] for batch in (1, 4)),
    *(Setting(2, 1, minibatches=2, optimizer=name) for name in ("own", "momentum", "adam")),
    *(Setting(batch, 1, optimizer=name) for name in ("momentum", "adam") for batch in (1, 4)),
)
"""What is asked by default (`default_settings`)."""

CLIP, SPARSE, DELTA = 0.1, 0.1, 1e-5
"""Norm of a clipped update, share of entries that a sparsified one keeps, δ of the two ε."""


def settings_of(
    batches: Sequence[int],
    epochs: Sequence[int],
    protections: Sequence[str],
    minibatches: Sequence[int] = (),
    optimizers: Sequence[str] = (),
) -> list[Setting]:
    """Return all combinations, with defaults for what is not chosen; none where nothing is.

    Where minibatches or an optimizer are chosen, the default is no protection instead of all.

    Raises:
        InputError: unknown protection or optimizer.
    """
    for name in protections:
        if name not in PROTECTIONS:
            raise InputError(f"--protection {name}: no such protection{suggestion(name, PROTECTIONS)}")
    for name in optimizers:
        if name not in OPTIMIZERS:
            raise InputError(f"--optimizer {name}: no such optimizer{suggestion(name, OPTIMIZERS)}")
    if not (batches or epochs or protections or minibatches or optimizers):
        return []
    every = PROTECTIONS[:1] if minibatches or optimizers else PROTECTIONS
    return [
        Setting(batch, count, name, parts, optimizer)
        for name in protections or every
        for optimizer in optimizers or ("own",)
        for parts in minibatches or (1,)
        for count in epochs or (1, 4)
        for batch in batches or (1, 4, 16)
    ]


def training_records(run: RunDirectory, game: int) -> dict[str, PartyRecords]:
    """Return every party's records by name: victims first, the adversary's last."""
    names, victims = list(run.manifest["parties"]), victims_of(run)
    order = sorted(range(len(names)), key=lambda k: (k not in victims, names[k] == run.manifest["adversary"]))
    folders = ((names[k], run.party_folder(game, k, names[k])) for k in order)
    return {name: read_party(folder)[0] for name, folder in folders}


def default_settings(run: RunDirectory) -> list[Setting]:
    """Return `SETTINGS`, without 'own' where no party of the run protects itself: it would be 'none'."""
    scenario, names = run.scenario, list(run.manifest["parties"])
    protected = any(scenario.dp_of(name) or scenario.defence_of(name) for name in names)
    return [setting for setting in SETTINGS if protected or setting.protection != "own"]


def sent(
    run: RunDirectory,
    module: torch.nn.Module,
    setting: Setting,
    parties: dict[str, PartyRecords],
    purpose: str,
    stream: np.random.Generator,
) -> tuple[Records, dict[str, np.ndarray], LocalSteps]:
    """Return one victim's batch, the update that is seen of it, and what is public of the training."""
    names, trains = list(parties), {name: party.train for name, party in parties.items()}
    victim = names[int(stream.integers(len(victims_of(run))))]
    senders = {"secure sum": names, "participant": names[:-1]}.get(setting.protection, [victim])
    batches = {
        name: trains[name].take(stream.permutation(len(trains[name]))[: setting.records]) for name in senders
    }
    answers = [
        _update(run, module, batch, _practice(run.scenario, name, setting), parties[name], purpose)
        for name, batch in batches.items()
    ]
    update = {name: np.mean([one[name] for one in answers], axis=0) for name in answers[0]}
    together = sum(len(batch) for batch in batches.values())
    practice = _practice(run.scenario, victim, setting)
    return batches[victim], update, practice.known(together, setting)


@dataclass(frozen=True)
class _Practice:
    """How one party makes its update under a setting.

    name: of the party; training: its own, ``epochs`` passes over ``minibatches`` batches; dp: None where it
        trains openly
    """

    name: str
    training: TrainingSettings
    defence: DefenceSettings
    dp: DPSettings | None
    proximal_mu: float
    minibatches: int

    def known(self, records: int, setting: Setting) -> LocalSteps:
        """Return what the server simulates of it. Dropout and mixup, which are drawn, are left out."""
        training = self.training
        return LocalSteps(
            records, -(-records // setting.minibatches), setting.epochs, training.lr, self.proximal_mu,
            training.l2, self.defence.l1, self.defence.label_smoothing,
            training.optimizer, training.momentum,
        )  # fmt: skip


def _practice(scenario: Scenario, name: str, setting: Setting) -> _Practice:
    shaping = {"clipped": {"clip_update": CLIP}, "sparsified": {"sparsify": SPARSE}}
    defence = DefenceSettings(**shaping.get(setting.protection, {}))
    training, private = scenario.training, None
    if setting.protection.startswith("ε"):
        private = DPSettings(epsilon=float(setting.protection.rpartition(" ")[2]), delta=DELTA)
        training = scenario.training.under_dp()
    if setting.protection == "own":
        private, training = scenario.dp_of(name), scenario.training_of(name)
        # One step follows another on the same few records: there is no epoch to stop after.
        defence = (scenario.defence_of(name) or NO_DEFENCE).model_copy(update={"patience": None})
    federation = scenario.federation
    mu = federation.options.get("proximal_mu", 0.0) if federation.strategy == "fedprox" else 0.0
    changes = {"epochs": setting.epochs, "steps": None} | OPTIMIZERS[setting.optimizer]
    training = training.model_copy(update=changes)
    return _Practice(name, training, defence, private, float(mu), setting.minibatches)


def _update(
    run: RunDirectory,
    module: torch.nn.Module,
    batch: Records,
    practice: _Practice,
    party: PartyRecords,
    purpose: str,
) -> dict[str, np.ndarray]:
    """Return the update that a party sends of one batch, by parameter name."""
    trained, before = copy.deepcopy(module), weights_of(module)
    size = -(-len(batch) // practice.minibatches)
    training = practice.training.model_copy(update={"batch": size})
    gradients = "auto" if practice.dp is None else practice.dp.gradients
    local = LocalTraining(training, practice.defence, practice.proximal_mu, gradients=gradients)
    draws = _draws(run.scenario.seed, f"{purpose}/{practice.name}")
    if practice.dp is not None:
        # The noise is that of the whole run; the records, which Poisson sampling would draw, are given.
        units = len(party.train)
        if practice.dp.unit == "person" and party.train_person is not None:
            units = len(np.unique(party.train_person))  # the batch's records are taken for one person's each
        plan = make_plan(practice.dp, _in_the_run(run, practice), units, run.scenario.federation.rounds)
        steps = practice.training.epochs * practice.minibatches
        rate = 1 / practice.minibatches
        once = replace(plan, sample_rate=rate, expected_batch=float(size), steps_per_round=steps)
        dp.train_private(trained, batch, local, once, draws)
    else:
        sgd.train(trained, batch, local, draws)
    updates.shape_answer(trained, before, practice.defence, draws)
    after = weights_of(trained)
    return {name: after[name].astype(np.float64) - before[name] for name, _ in module.named_parameters()}


def _in_the_run(run: RunDirectory, practice: _Practice) -> TrainingSettings:
    """Return the training that DP's noise is planned for: all rounds of the run, not one batch."""
    own = practice.dp == run.scenario.dp_of(practice.name)
    return run.scenario.training_of(practice.name) if own else run.scenario.training.under_dp()


def _draws(seed: int, purpose: str) -> PartyDraws:
    order, noise = (rng.torch_generator(seed, f"{purpose}/{what}") for what in ("order", "noise"))
    return PartyDraws(order, noise, rng.generator(seed, f"{purpose}/rounding"))
