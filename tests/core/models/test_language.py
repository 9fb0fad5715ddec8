"""Language models: the likelihood of a letter as two logits, and one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.models import shapes, zoo
from fedsim.core.models.language import LanguageModel, token_accuracy, token_nats
from fedsim.core.models.private import check_dp_ready, ghost_problem
from fedsim.core.scenario.training import ModelSettings, PretrainSettings
from fedsim.core.training.clipping import takes_ghost
from fedsim.core.training.metrics import evaluate
from fedsim.core.training.pretrain import pretrain

VOCABULARY, LENGTH = 23, 12
MODELS = {"gpt": [16, 16], "lstm": [12, 8]}


def _settings(name: str) -> ModelSettings:
    return ModelSettings(name=name, hidden=MODELS[name], vocabulary=VOCABULARY)


def _model(name: str) -> LanguageModel:
    module = zoo.build(_settings(name), (LENGTH,), 2, seed=3)
    assert isinstance(module, LanguageModel)
    return module


def _letters(n: int = 6) -> Tensor:
    ids = torch.from_numpy(np.random.default_rng(1).integers(1, VOCABULARY - 1, (n, LENGTH)))
    ids[:, 0] = 0
    ids[0, 5:] = VOCABULARY - 1
    return ids.float()


def _one_by_one(model: LanguageModel, ids: Tensor) -> Tensor:
    """Return the mean nats a token of one letter, every token predicted from all before it."""
    words = ids.long()[ids.long() != VOCABULARY - 1]
    logs = [model.next(words[None, :k])[0][0, words[k]] for k in range(1, len(words))]
    return -torch.stack(logs).mean()


@pytest.mark.parametrize("name", MODELS)
def test_cross_entropy_of_the_two_logits_is_nats_a_token_and_so_is_its_gradient(name: str) -> None:
    model, letters = _model(name), _letters()
    losses = torch.nn.functional.cross_entropy(
        model(letters), torch.zeros(6, dtype=torch.long), reduction="none"
    )
    slow = torch.stack([_one_by_one(model, ids) for ids in letters])
    torch.testing.assert_close(losses, slow, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    for fast, plain in zip(
        torch.autograd.grad(losses.sum(), parameters, allow_unused=True),
        torch.autograd.grad(slow.sum(), parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_read_one_at_a_time_give_what_they_give_together(name: str) -> None:
    model, ids, state = _model(name), _letters()[1:].long(), None
    together, _ = model.next(ids)
    for k in range(LENGTH):
        alone, state = model.next(ids[:, k : k + 1], state)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_depends_on_no_later_token_and_padding_costs_nothing(name: str) -> None:
    model, letters = _model(name), _letters()
    nats, _, _ = token_nats(model, letters)
    changed = letters.clone()
    changed[1:, 8] = 1 + (changed[1:, 8] % (VOCABULARY - 2))
    after, _, _ = token_nats(model, changed)
    torch.testing.assert_close(after[:, :7], nats[:, :7], equal_nan=True)
    assert torch.isnan(nats[0, 4:]).all()
    assert not torch.isnan(nats[1:]).any()


@pytest.mark.parametrize("name", MODELS)
def test_moments_of_a_prediction_are_those_of_its_distribution(name: str) -> None:
    model, letters = _model(name), _letters(2)
    _, mean, deviation = token_nats(model, letters)
    log_p = model.next(letters[1:2, :4].long())[0][0]
    expected = (log_p.exp() * log_p).sum()
    torch.testing.assert_close(mean[1, 3], expected, rtol=1e-4, atol=1e-5)
    variance = (log_p.exp() * (log_p - expected).square()).sum()
    torch.testing.assert_close(deviation[1, 3], variance.sqrt(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_ready_for_dp_sgd_and_counts_its_weights(name: str) -> None:
    model = _model(name)
    check_dp_ready(model, (LENGTH,))
    assert shapes.weights(_settings(name), (LENGTH,), 2) == sum(p.numel() for p in model.parameters())


def test_ghost_clipping_finds_its_norms_and_is_left_out_where_letters_are_long() -> None:
    assert ghost_problem(_model("gpt"), (LENGTH,)) == ""
    wide = zoo.build(ModelSettings(name="gpt", hidden=[64], vocabulary=200), (16,), 2)
    long = zoo.build(ModelSettings(name="gpt", hidden=[64], vocabulary=200), (100,), 2)
    assert takes_ghost(wide, (16,), 64.0, "auto")
    assert not takes_ghost(long, (100,), 64.0, "auto")


@pytest.mark.parametrize("name", MODELS)
def test_per_sample_gradients_are_those_of_each_letter_alone(name: str) -> None:
    """Embeddings, positions and attention among them: of real tokens, padding too."""
    from opacus import GradSampleModule

    plain, letters = _model(name), _letters(3)
    private = GradSampleModule(_model(name), loss_reduction="sum")
    torch.nn.functional.cross_entropy(
        private(letters), torch.zeros(3, dtype=torch.long), reduction="sum"
    ).backward()
    for k in range(3):
        loss = torch.nn.functional.cross_entropy(plain(letters[k : k + 1]), torch.zeros(1, dtype=torch.long))
        alone = torch.autograd.grad(loss, list(plain.parameters()))
        for (key, parameter), gradient in zip(private._module.named_parameters(), alone, strict=True):
            torch.testing.assert_close(parameter.grad_sample[k], gradient, rtol=1e-3, atol=1e-6, msg=key)


def test_pretraining_lowers_the_loss_and_repeats_to_the_bit() -> None:
    records = Records(_letters(4).numpy().repeat(8, 0), np.zeros(32, dtype=np.int64))
    trained = []
    for _ in range(2):
        model = _model("gpt")
        before = evaluate(model, records)["loss"]
        pretrain(model, records, PretrainSettings(epochs=3), torch.Generator().manual_seed(1))
        assert evaluate(model, records)["loss"] < before - 0.1
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


def test_accuracy_is_of_tokens() -> None:
    model, letters = _model("gpt"), _letters()
    right = [
        int(model.next(ids[None, :k].long())[0].argmax() == ids[k])
        for ids in letters
        for k in range(1, LENGTH)
        if ids[k] != VOCABULARY - 1
    ]
    assert token_accuracy(model, letters) == pytest.approx(np.mean(right))
    records = Records(letters.numpy(), np.zeros(6, dtype=np.int64))
    assert evaluate(model, records)["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocabulary": None}, "reads text"),
        ({"hidden": [16, 32]}, "one width"),
        ({"hidden": [20]}, r"multiple of 16, such as \[16\]"),
        ({"hidden": []}, "a layer at least"),
    ],
)
def test_what_does_not_suit_a_language_model_is_refused(changes: dict, words: str) -> None:
    settings = _settings("gpt").model_copy(update=changes)
    with pytest.raises(InputError, match=words):
        zoo.build(settings, (LENGTH,), 2)
