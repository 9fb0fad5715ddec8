from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, logsumexp, softmax

from attacks.signals import outputs
from attacks.signals.gradients import gradient_norms, gradient_products
from fedsim.core.data.records import Records
from fedsim.core.models import weights, zoo
from fedsim.core.scenario.training import ModelSettings


@st.composite
def answers(draw: st.DrawFn, largest: float = 1e4) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 7)))
    logits = draw(hnp.arrays(np.float64, shape, elements=st.floats(-largest, largest)))
    labels = draw(hnp.arrays(np.int64, shape[:1], elements=st.integers(0, shape[1] - 1)))
    return logits, labels


def of_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, labels[:, None], axis=1)[:, 0]


SIGNALS = {
    "loss": outputs.loss,
    "confidence": lambda z, y: outputs.confidence(z),
    "entropy": lambda z, y: outputs.entropy(z),
    "modified entropy": outputs.modified_entropy,
    "scaled logit": outputs.scaled_logit,
}


@given(answers())
def test_loss_and_confidence_are_scipys_log_softmax(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    log_p = log_softmax(logits, axis=1)
    np.testing.assert_allclose(outputs.loss(logits, labels), -of_label(log_p, labels), atol=1e-11)
    np.testing.assert_allclose(outputs.confidence(logits), log_p.max(axis=1), atol=1e-11)


@given(answers())
def test_scaled_logit_is_the_log_odds_by_scipys_logsumexp(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    expected = [z[y] - logsumexp(np.delete(z, y)) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(outputs.scaled_logit(logits, labels), expected, atol=1e-11)


@given(answers(largest=12))
def test_entropies_are_their_definitions(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    for z, y, entropy, modified in zip(
        logits, labels, outputs.entropy(logits), outputs.modified_entropy(logits, labels), strict=True
    ):
        p = softmax(z)
        wrong = np.delete(p, y)
        assert entropy == pytest.approx(-np.sum(p * np.log(p)), abs=1e-9)
        expected = -(1 - p[y]) * np.log(p[y]) - np.sum(wrong * np.log(1 - wrong))
        assert modified == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(answers())
def test_every_signal_is_finite_up_to_the_largest_logits(case: tuple[np.ndarray, np.ndarray]) -> None:
    for name, signal in SIGNALS.items():
        assert np.isfinite(signal(*case)).all(), name


@given(answers(largest=50), st.floats(-50, 50))
def test_shifting_all_logits_changes_no_signal(case: tuple[np.ndarray, np.ndarray], shift: float) -> None:
    logits, labels = case
    for name, signal in SIGNALS.items():
        moved = signal(logits + shift, labels)
        np.testing.assert_allclose(moved, signal(logits, labels), rtol=1e-9, atol=1e-9, err_msg=name)


def test_records_known_by_heart_keep_their_order() -> None:
    """p_y rounds to 1 in all of these; the signals still tell them apart."""
    margin = np.array([40.0, 80.0, 200.0, 700.0])
    logits, labels = np.stack([margin, 0 * margin], axis=1), np.zeros(4, dtype=int)
    assert (softmax(logits, axis=1)[:, 0] == 1).all()
    assert (np.diff(outputs.scaled_logit(logits, labels)) > 0).all()
    assert (np.diff(outputs.confidence(logits)) > 0).all()
    for falling in (outputs.loss(logits, labels), outputs.entropy(logits)):
        assert (np.diff(falling) < 0).all() and (falling > 0).all()
    assert (np.diff(outputs.modified_entropy(logits, labels)[:3]) < 0).all()


def test_loss_of_a_near_certain_answer_to_full_precision() -> None:
    # ℓ = log(1 + e^-φ) = e^-φ − e^-2φ/2 + …, at φ = 40
    found = outputs.loss(np.array([[40.0, 0.0]]), np.array([0]))[0]
    odds = Fraction(np.exp(-40.0))
    assert found == pytest.approx(float(odds - odds**2 / 2), rel=1e-14)


def test_modified_entropy_tells_a_confident_error_from_a_confident_answer() -> None:
    logits = np.array([[30.0, 0.0], [30.0, 0.0]])
    right, wrong = outputs.modified_entropy(logits, np.array([0, 1]))
    assert right < 1e-10 and wrong == pytest.approx(60.0)
    assert np.ptp(outputs.entropy(logits)) == 0


def test_logits_do_not_depend_on_the_batch(records: Callable[..., Records]) -> None:
    module = zoo.build(ModelSettings(hidden=[8]), (10,), 3, seed=4)
    features = records(np.random.default_rng(0), 50).features
    whole = outputs.logits(module, features)
    assert whole.shape == (50, 3) and whole.dtype == np.float64
    np.testing.assert_allclose(outputs.logits(module, features, batch=7), whole, atol=1e-6)
    assert outputs.logits(module, features[:0]).shape == (0, 3)


def products_one_by_one(
    module: torch.nn.Module, records: Records, direction: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The slow, obvious twin: one backward pass per record."""
    module, dots, norms = module.double(), [], []
    for features, label in zip(records.features, records.labels, strict=True):
        module.zero_grad()
        output = module(torch.tensor(features[None], dtype=torch.float64))
        torch.nn.functional.cross_entropy(output, torch.tensor([label])).backward()
        gradients = {name: value.grad.numpy() for name, value in module.named_parameters()}
        dots.append(sum((gradients[name] * direction[name]).sum() for name in gradients))
        norms.append(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values())))
    return np.array(dots), np.array(norms)


def shared_layer() -> torch.nn.Module:
    layer = torch.nn.Linear(10, 10)
    return torch.nn.Sequential(layer, torch.nn.ReLU(), layer, torch.nn.ReLU(), torch.nn.Linear(10, 2))


def own_module() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(10, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 2, bias=False)
    )


class Recurrent(torch.nn.Module):
    """A GRU, which `torch.func.vmap` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = torch.nn.GRU(1, 3, batch_first=True), torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(x[:, :, None])[0][:, -1])


class Bounded(torch.nn.Module):
    """An embedding whose rows are shortened as they are looked up, which vmap refuses as well."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = torch.nn.Embedding(8, 4, max_norm=0.5), torch.nn.Linear(40, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.words((x.clamp(-2, 1) + 2).long()).flatten(1))


ARCHITECTURES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "logistic": (lambda: zoo.build(ModelSettings(name="logistic"), (10,), 2, seed=2), (10,)),
    "mlp": (lambda: zoo.build(ModelSettings(hidden=[16, 8]), (10,), 2, seed=2), (10,)),
    "mlp on images": (lambda: zoo.build(ModelSettings(hidden=[16]), (1, 4, 4), 2, seed=2), (1, 4, 4)),
    "cnn": (lambda: zoo.build(ModelSettings(name="cnn", hidden=[4]), (1, 4, 4), 2, seed=2), (1, 4, 4)),
    "shared layer": (shared_layer, (10,)),
    "own module": (own_module, (10,)),
    "recurrent": (Recurrent, (10,)),
    "bounded rows": (Bounded, (10,)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [None, 3])
def test_gradient_products_equal_autograd_record_by_record(name: str, chunk: int | None) -> None:
    build, shape = ARCHITECTURES[name]
    torch.manual_seed(0)
    module, stream = build().eval(), np.random.default_rng(0)
    drawn = Records(stream.normal(size=(11, *shape)).astype(np.float32), stream.integers(0, 2, 11))
    direction = {key: stream.normal(size=value.shape) for key, value in module.named_parameters()}
    direction["a buffer"] = np.array(1.0)
    before = weights.weights_of(module)
    dot, norm = gradient_products(module, drawn, direction, chunk)
    np.testing.assert_equal(weights.weights_of(module), before)
    expected_dot, expected_norm = products_one_by_one(module, drawn, direction)
    np.testing.assert_allclose(dot, expected_dot, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-4)


def test_the_short_cut_is_exact_where_the_softmax_saturates(records: Callable[..., Records]) -> None:
    module = zoo.build(ModelSettings(hidden=[8]), (10,), 2, seed=2)
    with torch.no_grad():
        module[-1].weight.mul_(60)
    drawn = records(np.random.default_rng(0), 40)
    direction = {key: np.ones(value.shape) for key, value in module.named_parameters()}
    dot, norm = gradient_products(module, drawn, direction)
    expected_dot, expected_norm = products_one_by_one(module, drawn, direction)
    assert norm.min() < 1e-6 < norm.max()
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-6)
    np.testing.assert_allclose(dot, expected_dot, rtol=1e-6)


def test_no_records_no_products() -> None:
    module = zoo.build(ModelSettings(hidden=[8]), (10,), 2)
    direction = {key: np.ones(value.shape) for key, value in module.named_parameters()}
    none = Records(np.zeros((0, 10), np.float32), np.zeros(0, np.int64))
    assert [len(found) for found in gradient_products(module, none, direction)] == [0, 0]


def test_a_direction_without_a_parameter_is_an_error(records: Callable[..., Records]) -> None:
    module = zoo.build(ModelSettings(hidden=[8]), (10,), 2)
    with pytest.raises(KeyError, match="linear1"):
        gradient_products(module, records(np.random.default_rng(0), 3), {})


@given(answers())
def test_correct_is_the_share_of_right_answers(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    expected = [float(list(z).index(max(z)) == y) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_array_equal(outputs.correct(logits, labels), expected)


def test_a_model_without_an_answer_is_neither_right_nor_wrong() -> None:
    found = outputs.correct(np.array([[np.nan, 1.0], [2.0, 1.0]]), np.array([0, 0]))
    np.testing.assert_array_equal(found, [np.nan, 1.0])


def test_gradient_norms_are_those_beside_the_products(records: Callable[..., Records]) -> None:
    module = zoo.build(ModelSettings(hidden=[8]), (10,), 2, seed=2)
    drawn = records(np.random.default_rng(0), 9)
    _, expected = products_one_by_one(zoo.build(ModelSettings(hidden=[8]), (10,), 2, seed=2), drawn, {
        key: np.zeros(value.shape) for key, value in module.named_parameters()
    })  # fmt: skip
    np.testing.assert_allclose(gradient_norms(module, drawn), expected, rtol=1e-6)
