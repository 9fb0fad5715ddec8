"""Membership of letters, against transcriptions of the papers' formulas."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from attacks.text import membership
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core.data.records import Records
from fedsim.core.data.text import learn
from fedsim.core.models import zoo
from fedsim.core.models.language import LanguageModel
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

TEXTS = ["the cat sat on the mat", "a dog ran", "the dog sat", "on and on the cat ran after a dog"]
LENGTH = 40


@pytest.fixture(scope="module")
def view() -> ParticipantView:
    vocabulary = learn(TEXTS, 10)
    model = ModelSettings(name="gpt", hidden=[16], vocabulary=vocabulary.size)
    settings = PublicSettings(
        model, (LENGTH,), 2, 1, 2, 2, TrainingSettings(), "fedavg", vocabulary=vocabulary.document
    )
    models = {t: weights_of(zoo.build(model, (LENGTH,), 2, seed=t)) for t in (0, 1)}
    return ParticipantView(
        settings, models, {}, _letters(vocabulary.encode(TEXTS, LENGTH)), _letters(np.zeros((0, LENGTH)))
    )


def _letters(ids: np.ndarray) -> Records:
    return Records(ids.astype(np.float32), np.zeros(len(ids), dtype=np.int64))


def _log_p(view: ParticipantView, t: int, ids: np.ndarray) -> list[np.ndarray]:
    """Return log p over the vocabulary of every token of one letter, one by one, (S, V)."""
    module = view.module(view.models[t])
    assert isinstance(module, LanguageModel)
    words = [int(i) for i in ids if i != module.vocabulary - 1]
    with torch.no_grad():
        rows = [module.next(torch.tensor([words[:k]]))[0][0].double().numpy() for k in range(1, len(words))]
    return [rows, np.array([row[word] for row, word in zip(rows, words[1:], strict=True)])]  # type: ignore[list-item]


def test_min_k_plus_plus_is_the_papers(view: ParticipantView) -> None:
    scores = membership.min_k_plus(view, view.own_train, np.random.default_rng(1))
    for ids, score in zip(view.own_train.features, scores, strict=True):
        rows, own = _log_p(view, 1, ids)
        standard = []
        for row, value in zip(rows, own, strict=True):
            mean = sum(np.exp(row) * row)
            deviation = np.sqrt(sum(np.exp(row) * (row - mean) ** 2))
            standard.append((value - mean) / deviation)
        count = max(1, int(0.2 * len(standard)))
        assert score == pytest.approx(np.mean(sorted(standard)[:count]), rel=1e-3)


def test_min_k_zlib_and_reference_are_the_papers(view: ParticipantView) -> None:
    letters, rng = view.own_train, np.random.default_rng(1)
    lowest = membership.min_k(view, letters, rng)
    packed = membership.zlib_ratio(view, letters, rng)
    reference = membership.reference(view, letters, rng)
    for k, ids in enumerate(letters.features):
        own, before = _log_p(view, 1, ids)[1], _log_p(view, 0, ids)[1]
        count = max(1, int(0.2 * len(own)))
        assert lowest[k] == pytest.approx(np.mean(np.sort(own)[:count]), rel=1e-4)
        assert packed[k] == pytest.approx(np.mean(own) / len(zlib.compress(TEXTS[k].encode())), rel=1e-4)
        assert reference[k] == pytest.approx(np.mean(own) - np.mean(before), rel=1e-3, abs=1e-5)


def test_neighbours_differ_in_a_tenth_of_the_tokens_and_never_in_first_or_padding(
    view: ParticipantView,
) -> None:
    letters = view.own_train.features
    padding = view.settings.model.vocabulary - 1  # type: ignore[operator]
    new = np.stack(list(membership._neighbours(view, np.repeat(letters, 50, 0), np.random.default_rng(2))))
    old = np.repeat(letters, 50, 0)
    assert (new[:, :, 0] == old[None, :, 0]).all()
    assert ((new == padding) == (old == padding)).all()
    words = (old != padding) & (np.arange(LENGTH) > 0)
    assert 0.03 < (new != old)[:, words].mean() < 0.1  # a draw may give the token that was there


def test_scores_do_not_depend_on_who_else_is_asked_about(view: ParticipantView) -> None:
    order = np.array([2, 0, 3, 1])
    for attack in (membership.zlib_ratio, membership.reference, membership.min_k, membership.min_k_plus):
        whole = attack(view, view.own_train, np.random.default_rng(1))
        permuted = attack(view, view.own_train.take(order), np.random.default_rng(1))
        assert permuted == pytest.approx(whole[order], rel=1e-5)
