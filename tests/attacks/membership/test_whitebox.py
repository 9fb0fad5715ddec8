from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks.membership import attack_network, whitebox
from attacks.membership.attack_network import AttackNetwork
from attacks.signals import outputs
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def gradients(
    module: torch.nn.Module, records: Records, layer: torch.nn.Linear | None = None
) -> list[np.ndarray]:
    """One backward pass per record: the gradient of all parameters, or of a layer as (out, in + 1)."""
    module, found = module.double(), []
    for x, y in zip(records.features, records.labels, strict=True):
        module.zero_grad()
        output = module(torch.tensor(x[None], dtype=torch.float64))
        torch.nn.functional.cross_entropy(output, torch.tensor([y])).backward()
        if layer is None:
            found.append(torch.cat([p.grad.flatten() for p in module.parameters()]).numpy())
        else:
            found.append(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).numpy())
    return found


def test_gradient_norm_by_autograd(overfitted: Any) -> None:
    few = overfitted.candidates.take(np.arange(0, 80, 8))
    module = overfitted.view.module(overfitted.view.final_model)
    expected = [-np.linalg.norm(gradient) for gradient in gradients(module, few)]
    np.testing.assert_allclose(whitebox.gradient_norm(overfitted.view, few, stream()), expected, rtol=1e-6)


def test_what_the_network_sees_is_the_last_layers_gradient_row_by_row(early: Any) -> None:
    """δ ãᵀ is what autograd finds, with the label's row first and the others by falling logits."""
    few = early.candidates.take(np.arange(0, 80, 8))
    module = early.view.module(early.view.models[7])
    seen = whitebox._seen_at(early.view, 7, module, few)
    delta, p, loss, a = np.split(seen, [10, 20, 21], axis=1)
    logits = early.view.logits(7, few)
    for i, gradient in enumerate(gradients(module, few, module.output)):
        y = few.labels[i]
        order = [y, *(c for c in np.argsort(-logits[i]) if c != y)]
        np.testing.assert_allclose(np.outer(delta[i], [*a[i], 1]), gradient[order], rtol=1e-4, atol=1e-6)
        softmax = np.exp(logits[i]) / np.exp(logits[i]).sum()
        np.testing.assert_allclose(p[i], softmax[order], rtol=1e-9)
        np.testing.assert_allclose(loss[i], -np.log(softmax[y]), rtol=1e-6)


def test_kernels_go_over_the_rows_of_the_gradient() -> None:
    """The network's short cut against a convolution of the gradient as it is, formed in full."""
    rng = np.random.default_rng(2)
    network = AttackNetwork(rounds=3, classes=4, activations=5).double()
    seen, label = (
        torch.tensor(rng.normal(size=(6, 3, 14))),
        torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0, 1]],
    )
    delta, p, loss, a = seen.split([4, 4, 1, 5], dim=2)
    full = torch.einsum("nrc,nrh->nrch", delta, torch.cat([a, torch.ones(6, 3, 1)], dim=2))
    rows = torch.nn.functional.conv2d(
        full.reshape(18, 1, 4, 6), network.kernels.weight[:, None, None, :] / 6
    )  # (18, kernels, 4, 1)
    convolved = rows.relu().reshape(6, 3, attack_network.KERNELS, 4).transpose(2, 3)
    parts = [part.flatten(1) for part in (convolved, p, loss, a, label)]
    hidden = [f(part) for f, part in zip(network.components, [q / q.shape[1] for q in parts], strict=True)]
    expected = network.encoder(torch.cat(hidden, dim=1).relu())[:, 0]
    torch.testing.assert_close(network(seen, label), expected)


def test_stacked_networks_are_as_each_by_itself() -> None:
    """Training by torch's own modules, one network after the other, on folds of different sizes."""
    rng, rounds, classes = np.random.default_rng(3), 2, 3
    folds = [(rng.normal(size=(m, 2 * 11 + 3)), rng.random(m) < 0.4) for m in (30, 27, 30)]
    asked = rng.normal(size=(9, 25))
    found = attack_network.fit(folds, np.random.default_rng(4), rounds, classes)
    seeds = np.random.default_rng(4)
    for (known, member), scorer in zip(folds, found, strict=True):
        network = attack_network._initial(rounds, classes, 4, seed=int(seeds.integers(2**63)))
        step, target = attack_network.adamw(list(network.parameters())), torch.tensor(member).float()
        mean, deviation = known.mean(axis=0), known.std(axis=0)
        weight = torch.where(target > 0, 0.5 / target.mean(), 0.5 / (1 - target.mean()))

        def odds(values: np.ndarray, network: AttackNetwork = network) -> torch.Tensor:
            scaled = torch.tensor((values - mean) / deviation).to(next(network.parameters()).dtype)  # noqa: B023
            return network(scaled[:, :-3].reshape(len(values), 2, 11), scaled[:, -3:])

        for _ in range(attack_network.STEPS):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(odds(known), target, weight)
            step(torch.autograd.grad(loss, list(network.parameters())))
        network.double()
        with torch.no_grad():
            np.testing.assert_allclose(scorer(asked), odds(asked).numpy(), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_label_first_is_a_permutation_that_starts_with_the_label(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(-2, 3, (7, classes)).astype(float), rng.integers(0, classes, 7)
    found = whitebox.label_first(logits, labels, logits)
    np.testing.assert_array_equal(found[:, 0], logits[np.arange(7), labels])
    assert (np.diff(found[:, 1:], axis=1) <= 0).all()
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(logits, axis=1))


@given(st.integers(1, 60), st.integers(1, 8))
def test_spread_takes_the_last_round_and_even_steps(total: int, count: int) -> None:
    found = whitebox.spread(list(range(1, total + 1)), count)
    assert len(found) == len(set(found)) == min(total, count) and found[-1] == total
    assert np.ptp(np.diff([0, *found])) <= 1


def test_spread_of_forty_rounds() -> None:
    assert whitebox.spread(list(range(1, 41)), 5) == [8, 16, 24, 32, 40]


@pytest.mark.parametrize("attack", [whitebox.representation, whitebox.network])
def test_learned_attacks_tell_the_owners_members_by_records_they_have_not_seen(
    overfitted: Any, attack: Callable[..., np.ndarray]
) -> None:
    view = overfitted.view
    own = Records.concatenate([view.own_train, view.own_heldout])
    assert roc_auc_score(np.arange(40) < 20, attack(view.as_outsider_of_itself(), own, stream())) > 0.95


def test_the_network_depends_on_its_stream_and_leaves_torchs_alone() -> None:
    rng = stream()
    known, member = rng.normal(size=(40, 2 * (2 * 3 + 1 + 4) + 3)), np.arange(40) < 15
    asked = rng.normal(size=(9, known.shape[1]))

    def scores(seed: int) -> np.ndarray:
        return attack_network.fit([(known, member)], np.random.default_rng(seed), 2, 3)[0](asked)

    torch.manual_seed(1)
    first = scores(1)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    np.testing.assert_array_equal(scores(1), first)
    assert not np.allclose(scores(2), first)


def test_the_network_learns_from_the_gradient_alone() -> None:
    """Members' δ in the label's row is small; outputs and loss are kept from it, activations are noise.

    Not as well as it could: with so few steps the gradient's part stays small, which is what keeps the
    network from learning one party's few records by heart.
    """
    rng = stream()

    def drawn(member: np.ndarray) -> np.ndarray:
        values = np.zeros((len(member), 1 * (2 * 3 + 1 + 4) + 3))
        values[:, 0] = -np.where(member, 0.1, 1.0) * rng.uniform(0.5, 1.5, len(member))
        values[:, 7:11] = rng.normal(size=(len(member), 4))
        return values

    known, unseen = rng.random(1000) < 0.5, rng.random(400) < 0.5
    fits = attack_network.fit([(drawn(known), known) for _ in range(4)], rng, rounds=1, classes=3)
    assert roc_auc_score(unseen, np.mean([score(drawn(unseen)) for score in fits], axis=0)) > 0.7


def test_both_kinds_weigh_the_same_however_many_there_are() -> None:
    rng = stream()
    known, member = rng.normal(size=(300, 14)), np.arange(300) < 30
    (score,) = attack_network.fit([(known, member)], rng, rounds=1, classes=3)
    scores = score(rng.normal(size=(500, 14)))
    assert abs(np.mean(scores)) < 1  # with 30 : 270 unweighted: log 1/9 = −2.2


def test_a_view_of_no_trained_round_tells_nothing(overfitted: Any) -> None:
    view = replace(overfitted.view, models={0: overfitted.view.models[0]}, _kept={})
    assert not whitebox.network(view, overfitted.candidates, stream()).any()


# Penultimate activations.


class Doubled(torch.nn.Module):
    """Its logits do not come straight out of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn"])
def test_the_last_layer_maps_the_activations_to_the_logits(name: str) -> None:
    shape = (1, 4, 4) if name == "cnn" else (10,)
    module = zoo.build(ModelSettings(name=name, hidden=[8]), shape, 3, seed=1).eval()
    features = stream().normal(size=(23, *shape)).astype(np.float32)
    found = outputs.last_layer_inputs(module, features, batch=5)
    with torch.no_grad():
        expected = module(torch.tensor(features)).numpy()
        from_activations = module.output(torch.tensor(found)).numpy()
    np.testing.assert_allclose(from_activations, expected, atol=1e-6)
    assert outputs.last_layer_inputs(module, features[:0]).shape == (0, found.shape[1])
    assert not any(layer._forward_hooks for layer in module.modules())


def test_logits_stand_in_where_no_linear_layer_is_last() -> None:
    module, features = Doubled(), stream().normal(size=(6, 10)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(features)).numpy()
    np.testing.assert_allclose(outputs.last_layer_inputs(module, features), expected, atol=1e-6)


def test_its_adamw_is_torchs_bit_for_bit() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(3, 5), torch.randn(7)]
    theirs = [p.clone().requires_grad_() for p in ours]
    reference = torch.optim.AdamW(
        theirs, lr=attack_network.RATE, weight_decay=attack_network.DECAY, fused=True
    )
    step = attack_network.adamw(ours)
    for _ in range(20):
        gradients = [torch.randn_like(p) for p in ours]
        for p, gradient in zip(theirs, gradients, strict=True):
            p.grad = gradient.clone()
        reference.step()
        step(gradients)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_training_the_network_imports_no_optimizers() -> None:
    """torch.optim imports for over a second for its first object, for which nothing else of a run may ask."""
    code = """
import sys
import numpy as np
from attacks.membership import attack_network
known = np.random.default_rng(0).normal(size=(40, 2 * (2 * 2 + 1 + 3) + 2))
folds = [(known, np.arange(40) % 2 == 0)]
attack_network.fit(folds, np.random.default_rng(1), rounds=2, classes=2)[0](known)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
