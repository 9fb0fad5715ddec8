"""A party that answers with a student: what it sends was trained on other labels than its own.

SELENA (Tang et al. 2022, algorithms 1 and 2), 'selena': of K teachers each record is left out by L, drawn at
random, and trained on by the others; the student is trained on the same records, each with the mean answer of
the L that did not see it for a label. DMP (Shejwalkar & Houmansadr 2021), 'dmp': K teachers are trained on
all records, from the same start with batches of their own; the student is trained on public records with
their mean answer, at a temperature, and never on the party's. In a federation both happen within a round:
teachers and student set out from the global model, the student is the party's answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training import sgd
from fedsim.core.training.draws import Draws, PartyDraws
from fedsim.core.training.metrics import logits
from fedsim.core.training.steps import LocalTraining, TrainingReport


def train(module: nn.Module, records: Records, local: LocalTraining, draws: Draws) -> TrainingReport:
    """Train ``module`` in place for one round without DP: as `sgd.train`, or as the student of teachers.

    The report is the student's.

    Raises:
        ValueError: there are no records to train on, to stop on, or for the student.
    """
    if local.defence.distil is None:
        return sgd.train(module, records, local, draws)
    if local.defence.distil == "dmp":
        if local.transfer is None or len(local.transfer) == 0:
            raise ValueError("a student of public records needs some")
        taught = local.transfer
        left_out = np.zeros((len(records), local.defence.teachers), dtype=bool)
        labels = _answers(module, records, left_out, taught, local, draws).mean(axis=0)
    else:
        taught = records
        stream = rng.generator(draws.seed("teachers"), "who leaves out whom")
        left_out = leave_out(len(records), local.defence, stream)
        answers = _answers(module, records, left_out, taught, local, draws)  # (K, n, classes)
        labels = (answers * left_out.T[:, :, None]).sum(axis=0) / local.defence.left_out
    batches = draws if taught is records else _own_draws(draws, "student")
    return sgd.train(module, taught, local, batches, soft=labels.astype(np.float32))


def leave_out(n: int, defence: DefenceSettings, stream: np.random.Generator) -> np.ndarray:
    """Return which teachers do not train on which of n records, (n, K) bool with L true in each row."""
    ranks = stream.permuted(np.tile(np.arange(defence.teachers), (n, 1)), axis=1)
    return ranks < defence.left_out


def _own_draws(draws: Draws, purpose: str) -> Draws:
    return PartyDraws(torch.Generator().manual_seed(draws.seed(purpose)), None)


def _answers(
    module: nn.Module,
    records: Records,
    left_out: np.ndarray,
    taught: Records,
    local: LocalTraining,
    draws: Draws,
) -> np.ndarray:
    """Return the teachers' answers on ``taught`` (m), (K, m, classes) float64; the module is as it was after.

    A teacher trains as the party would without distillation, on those records that it does not leave out.
    """
    sent = weights_of(module)
    teacher = replace(local, defence=local.defence.model_copy(update={"distil": None}))
    told = []
    for number, missing in enumerate(left_out.T):
        load_weights(module, sent)
        own = records.take(np.flatnonzero(~missing))
        if len(own):
            sgd.train(module, own, teacher, _own_draws(draws, f"teacher/{number}"))
        z = logits(module, taught, device=local.device) / local.defence.distil_temperature
        told.append(torch.from_numpy(z).softmax(1).numpy())
    load_weights(module, sent)
    return np.stack(told)
