"""Students of teachers (SELENA, DMP), against their algorithms written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.open_training import assert_close, draws, some_records, stream
from support.training import mlp
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import distillation, metrics, optimizers, sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

SETTINGS = TrainingSettings(batch=16, epochs=3, lr=0.2)
SELENA = DefenceSettings(distil="selena", teachers=4, left_out=2)
DMP = DefenceSettings(distil="dmp", teachers=2, distil_temperature=3.0)


@given(n=st.integers(1, 40), teachers=st.integers(2, 9), data=st.data())
def test_each_record_is_left_out_by_as_many_teachers_as_asked(
    n: int, teachers: int, data: st.DataObject
) -> None:
    left_out = data.draw(st.integers(1, teachers - 1))
    defence = DefenceSettings(distil="selena", teachers=teachers, left_out=left_out)
    missing = distillation.leave_out(n, defence, np.random.default_rng(data.draw(st.integers(0, 9))))
    assert missing.shape == (n, teachers) and (missing.sum(axis=1) == left_out).all()


def taught(records: Records, seed: int) -> torch.nn.Module:
    """A teacher: an ordinary round from the same start with batches of its own."""
    module = mlp()
    sgd.train(module, records, LocalTraining(SETTINGS), PartyDraws(torch.Generator().manual_seed(seed), None))
    return module


def student(records: Records, labels: np.ndarray, order: PartyDraws) -> dict:
    """Cross-entropy against soft labels, by autograd."""
    module = mlp()
    optimizer = optimizers.torch_optimizer(SETTINGS, list(module.parameters()))
    data = torch.from_numpy(records.features), torch.from_numpy(labels)
    for x, target in sgd.minibatches(data, SETTINGS, order):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), target).backward()
        optimizer.step()
    return weights_of(module)


def answers(module: torch.nn.Module, records: Records, temperature: float = 1.0) -> np.ndarray:
    z = metrics.logits(module, records) / temperature
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def seed_of(purpose: str) -> int:
    return rng.integer(stream().initial_seed(), purpose)


def test_selena_s_student_learns_what_teachers_say_that_did_not_see_the_record() -> None:
    records = some_records()
    who = rng.generator(seed_of("teachers"), "who leaves out whom")
    missing = distillation.leave_out(len(records), SELENA, who)
    teachers = [
        taught(records.take(np.flatnonzero(~missing[:, k])), seed_of(f"teacher/{k}")) for k in range(4)
    ]
    labels = np.zeros((len(records), 3), dtype=np.float32)
    for i in range(len(records)):
        one = records.take(np.array([i]))
        labels[i] = np.mean([answers(teachers[k], one)[0] for k in range(4) if missing[i, k]], axis=0)
    module = mlp()
    distillation.train(module, records, LocalTraining(SETTINGS, SELENA), draws())
    assert_close(weights_of(module), student(records, labels, draws()))


def test_dmp_s_student_sees_public_records_alone() -> None:
    records, public = some_records(), some_records(30, seed=5)
    teachers = [taught(records, seed_of(f"teacher/{k}")) for k in range(2)]
    labels = np.mean([answers(teacher, public, 3.0) for teacher in teachers], axis=0).astype(np.float32)
    order = PartyDraws(torch.Generator().manual_seed(seed_of("student")), None)
    module = mlp()
    distillation.train(module, records, LocalTraining(SETTINGS, DMP, transfer=public), draws())
    assert_close(weights_of(module), student(public, labels, order))


def test_without_public_records_there_is_no_student_of_them() -> None:
    with pytest.raises(ValueError, match="a student of public records needs some"):
        distillation.train(mlp(), some_records(), LocalTraining(SETTINGS, DMP), draws())


def test_without_distillation_it_is_an_ordinary_round() -> None:
    plain, same = mlp(), mlp()
    sgd.train(plain, some_records(), LocalTraining(SETTINGS), draws())
    distillation.train(same, some_records(), LocalTraining(SETTINGS), draws())
    assert_close(weights_of(same), weights_of(plain))
