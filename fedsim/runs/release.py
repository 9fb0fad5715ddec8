"""What a federation ends in where it is not the final model: an ensemble, or its student.

The parties' own models are trained apart, in their processes' place: from the w_0 of the federation, with the
settings and the defences of each, for as many rounds, on disjoint parts of its training records. So no
record has changed more than one member. The student is trained on public records with the ensemble's
answers, never on a private record.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords, read_party, read_public
from fedsim.core.files import write_arrays, write_json
from fedsim.core.models import released, zoo
from fedsim.core.models.released import Ensemble, Released
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.privacy import memguard
from fedsim.core.privacy.output import softmax
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import NO_DEFENCE, OutputPolicy
from fedsim.core.training import distillation, metrics, sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining


def make(run: RunDirectory, game: int) -> None:
    """Train and keep what the game releases; nothing where that is the final model, as it is.

    A release that was made before is kept.
    """
    settings, folder = run.scenario.release, released.folder_of(run, game)
    guarded = run.scenario.adversary.output.policy == "memguard"
    if (settings.kind == "final" and not guarded) or (folder / "about.json").exists():
        return
    if settings.kind != "final":
        members = _members(run, game)
        if settings.kind == "student":
            members = [_student(run, game, members)]
        for number, member in enumerate(members):
            write_arrays(folder / f"member-{number:03d}.safetensors", weights_of(member))
    made = released.load(run, game)
    if guarded:
        write_arrays(folder / "guard.safetensors", weights_of(_guard(run, game, made)))
    write_json(folder / "about.json", _about(run, game, made))


def _members(run: RunDirectory, game: int) -> list[nn.Module]:
    if run.scenario.release.of == "federation":
        last = run.released_round(game)
        rounds = range(last - run.scenario.release.members + 1, last + 1)
        return [_global(run, game, t) for t in rounds]
    parties = [read_party(folder)[0] for folder in _folders(run, game)]
    return [module for party in parties for module in _apart(run, game, party)]


def _folders(run: RunDirectory, game: int) -> list:
    names = run.manifest["parties"]
    return [run.party_folder(game, k, name) for k, name in enumerate(names)]


def _global(run: RunDirectory, game: int, t: int) -> nn.Module:
    module = zoo.build(run.scenario.model, tuple(run.manifest["input_shape"]), len(run.manifest["classes"]))
    load_weights(module, run.read_model(game, t))
    return module.eval()


def _apart(run: RunDirectory, game: int, party: PartyRecords) -> list[nn.Module]:
    """Return the models that a party trains on disjoint parts of its records, dealt at random."""
    scenario = run.scenario
    defence = scenario.defence_of(party.name) or NO_DEFENCE
    folder = next(f for f in _folders(run, game) if read_party(f)[0].name == party.name)
    public = read_public(folder) if defence.reads_public else None
    local = LocalTraining(
        scenario.training_of(party.name),
        defence,
        stop_on=public if defence.stop_on == "public" else party.heldout,
        transfer=public if defence.distil == "dmp" else None,
    )
    stream = rng.generator(scenario.seed, "release/parts", game=game, party=party.name)
    parts = np.array_split(stream.permutation(len(party.train)), scenario.release.members)
    return [
        _trained(
            _global(run, game, 0), party.train.take(np.sort(part)), local, run, game, f"{party.name}/{number}"
        )
        for number, part in enumerate(parts)
        if len(part)
    ]


def _trained(
    module: nn.Module, records: Records, local: LocalTraining, run: RunDirectory, game: int, who: str
) -> nn.Module:
    """Return the module after as many rounds as the federation has, alone."""
    for t in range(1, run.scenario.federation.rounds + 1):
        order = rng.torch_generator(run.scenario.seed, "release/training", game=game, party=who, round=t)
        distillation.train(module, records, local, PartyDraws(order, None))
    return module.eval()


def _student(run: RunDirectory, game: int, members: list[nn.Module]) -> nn.Module:
    """Return a model of public records with the ensemble's answers (a DMP student of them all)."""
    public = read_public(run.path / "release")
    labels = softmax(metrics.logits(Ensemble(members), public)).astype(np.float32)
    seed = rng.integer(run.scenario.seed, "release/student", game=game)
    shape, classes = tuple(run.manifest["input_shape"]), len(run.manifest["classes"])
    module = zoo.build(run.scenario.model, shape, classes, seed)
    local = LocalTraining(run.scenario.training)
    for t in range(1, run.scenario.federation.rounds + 1):
        order = rng.torch_generator(run.scenario.seed, "release/student", game=game, round=t)
        sgd.train(module, public, local, PartyDraws(order, None), soft=labels)
    return module.eval()


def _guard(run: RunDirectory, game: int, made: Released) -> nn.Module:
    """Return MemGuard's classifier of answers about the parties' training and held-out records."""
    parties = [read_party(folder)[0] for folder in _folders(run, game)]
    module = made.module(OutputPolicy())
    members, others = (
        softmax(metrics.logits(module, Records.concatenate([getattr(party, side) for party in parties])))
        for side in ("train", "heldout")
    )
    return memguard.train_guard(members, others, rng.integer(run.scenario.seed, "memguard", game=game))


def _about(run: RunDirectory, game: int, made: Released) -> dict:
    parties = [read_party(folder)[0] for folder in _folders(run, game)]
    heldout = Records.concatenate([party.heldout for party in parties])
    measured = metrics.evaluate(made.module(OutputPolicy()), heldout)
    known = {key: None if math.isnan(value) else value for key, value in measured.items()}
    return {"kind": run.scenario.release.kind, "members": len(made.members)} | known
