"""Updates regressed on gradients: inner products against autograd, the solution against least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from support.federation import Federation, initial

from attacks.membership import trajectory, update_regression
from attacks.views import rounds
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings, module_of
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings


def gradients(module: torch.nn.Module, records: Records) -> np.ndarray:
    """One backward pass a record."""
    rows = []
    for x, y in zip(torch.tensor(records.features), torch.tensor(records.labels), strict=True):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(x[None]), y[None]).backward()
        rows.append(torch.cat([w.grad.flatten() for w in module.parameters() if w.grad is not None]).numpy())
    return np.array(rows, dtype=np.float64)


def images(n: int = 12) -> Records:
    stream = np.random.default_rng(1)
    return Records(stream.normal(size=(n, 1, 8, 8)).astype(np.float32), stream.integers(0, 3, n))


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn"])
def test_gram_is_that_of_the_gradients(name: str) -> None:
    records = images()
    module = zoo.build(ModelSettings(name=name, hidden=[5]), (1, 8, 8), 3, seed=2)
    rows = gradients(module, records)
    np.testing.assert_allclose(
        update_regression.gradient_gram(module, records), rows @ rows.T, rtol=1e-4, atol=1e-6
    )
    assert next(module.parameters()).dtype == torch.float32, "the view's module is left as it was"


def test_coefficients_are_those_of_ridge_regression() -> None:
    stream = np.random.default_rng(0)
    design, target = stream.normal(size=(200, 6)), stream.normal(size=200)
    gram, penalty = design.T @ design, 0.1
    found = update_regression.ridge(gram, (design.T @ target)[:, None], penalty)[:, 0]
    alpha = penalty * np.trace(gram) / 6
    coefficients = Ridge(alpha=alpha, fit_intercept=False).fit(design, target).coef_
    draws = Ridge(alpha=alpha, fit_intercept=False).fit(design, stream.normal(size=(200, 4000))).coef_
    np.testing.assert_allclose(found, coefficients / draws.std(axis=0), rtol=0.05)


def test_one_step_of_gradient_descent_is_taken_apart_exactly() -> None:
    """More parameters than records, one full-batch step: who was in it is no longer a guess."""
    settings = PublicSettings(
        ModelSettings(hidden=[32]), (20,), 2, 1, 2, 2, TrainingSettings(), "fedavg", sizes=(5, 15)
    )
    stream = np.random.default_rng(3)
    records = Records(stream.normal(size=(40, 20)).astype(np.float32), stream.integers(0, 2, 40))
    module = module_of(settings, initial(settings))
    member = stream.permutation(40) < 15
    step = -0.1 * gradients(module, records)[member].mean(axis=0)
    update, start = {}, 0
    for name, weight in module.named_parameters():
        update[name] = step[start : start + weight.numel()].reshape(tuple(weight.shape))
        start += weight.numel()
    scores = update_regression.decode([(module, [update])], records)[:, 0]
    assert scores[member].min() > scores[~member].max()


def test_a_participant_finds_more_than_by_the_cosine(early: Federation) -> None:
    stream = np.random.default_rng(0)
    together = update_regression.score(early.view, early.candidates, stream)
    alone = trajectory.update_cosine(early.view, early.candidates, stream)
    assert roc_auc_score(early.member, together) > max(0.9, roc_auc_score(early.member, alone))


def test_blocks_are_decoded_by_themselves(early: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = np.random.default_rng(0)
    monkeypatch.setattr(update_regression, "MOST", 30)
    monkeypatch.setattr(update_regression, "SPLIT", 30)
    parts = update_regression._split(len(early.candidates))
    assert max(map(len, parts)) <= 30
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(len(early.candidates)))
    scores = update_regression.score(early.view, early.candidates, stream)
    alone = update_regression.score(early.view, early.candidates.take(parts[1]), stream)
    np.testing.assert_allclose(scores[parts[1]], alone, rtol=1e-8)


def test_without_updates_nothing_is_said(untrained: ParticipantView, overfitted: Federation) -> None:
    stream = np.random.default_rng(0)
    scores = update_regression.score(untrained, overfitted.candidates, stream)
    np.testing.assert_array_equal(scores, 0)  # the step from w_0 to w_1 is 0
    last = rounds.over(overfitted.view, [12])
    np.testing.assert_array_equal(update_regression.score(last, overfitted.candidates, stream), 0)
