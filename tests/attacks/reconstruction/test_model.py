"""Model inversion descends as MIFace does, and finds a class's typical record where there is one."""

from __future__ import annotations

import numpy as np
import torch
from support.federation import initial, train
from support.layouts import layout_of_features

from attacks.reconstruction import model
from attacks.reconstruction.model import Descent
from attacks.views.settings import PublicSettings, module_of
from fedsim.core.data.layout import ColumnLayout
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

PIXELS = tuple(ColumnLayout(f"p{i}", "number", i, i + 1, low=0.0, high=1.0) for i in range(16))


def test_one_step_is_the_papers_equation() -> None:
    """x_1 = clip(x_0 + λ p_y Σ_c p_c (W_y − W_c)) for a logistic model."""
    layout = layout_of_features("a", "b")
    net = zoo.build(ModelSettings(name="logistic"), (2,), 3, seed=1).eval()
    rebuilt = model.invert([net], 1, layout, descent=Descent(iterations=1, step=0.5, cost=0.0))
    weight, bias = (p.detach().numpy().astype(np.float64) for p in net.parameters())
    p = np.exp(bias) / np.exp(bias).sum()
    by_hand = 0.5 * p[1] * (p[:, None] * (weight[1] - weight)).sum(axis=0)
    np.testing.assert_allclose(rebuilt, by_hand, rtol=1e-5)


def test_a_class_of_one_picture_gives_it_away() -> None:
    """Two pictures, each a class; what distinguishes them is found, and the row stays a picture."""
    stream = np.random.default_rng(0)
    shape, other = (stream.random((2, 16)) > 0.5).astype(np.float32)
    pictures = np.clip(np.repeat([shape, other], 30, axis=0) + 0.1 * stream.normal(size=(60, 16)), 0, 1)
    records = Records(pictures.astype(np.float32), np.repeat([0, 1], 30))
    chosen = ModelSettings(name="mlp", hidden=[16])
    settings = PublicSettings(chosen, (16,), 2, 1, 2, 2, TrainingSettings(), "fedavg")
    net = module_of(settings, train(settings, initial(settings), records, 200, 0.3))
    rebuilt = model.invert_all([net], PIXELS, 2)
    assert rebuilt.min() >= 0 and rebuilt.max() <= 1
    unlike = shape != other
    assert np.corrcoef(rebuilt[0][unlike], shape[unlike])[0, 1] > 0.8
    assert np.corrcoef(rebuilt[1][unlike], other[unlike])[0, 1] > 0.8


def test_categories_stay_in_the_simplex() -> None:
    layout = layout_of_features("w=x", "w=y", "w=z", "a")
    net = zoo.build(ModelSettings(name="mlp", hidden=[16]), (4,), 2, seed=1).eval()
    rebuilt = model.invert_all([net, net], layout, 2, descent=Descent(iterations=200, step=1.0))
    assert (rebuilt[:, :3] >= 0).all() and (rebuilt[:, :3].sum(axis=1) <= 1 + 1e-6).all()


def test_the_descent_ends_where_the_cost_no_longer_falls() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(16, 2))
    torch.nn.init.zeros_(net[0].weight)
    torch.nn.init.zeros_(net[0].bias)
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    model.invert([net], 0, PIXELS, descent=Descent(patience=5))
    assert len(calls) == 6  # the sixth is no better than the worst of five


def test_class_means_are_of_ones_own_records() -> None:
    records = Records(np.array([[0, 1.0], [2, 3.0], [8, 9.0]], np.float32), np.array([0, 0, 1]))
    rebuilt = model.class_means(records, 3, layout_of_features("a", "b"))
    np.testing.assert_allclose(rebuilt, [[1, 2], [8, 9], [0, 0]])


ART_VALUES = [
    [0.3271308, -0.4253485, -0.8274282, -0.7109475],
    [-1.7796469, 0.3527879, -1.867213, -0.3909928],
    [-0.58991, 0.6945332, 1.4369586, 1.6059226],
]
"""What MIFace of ART 1.20.1 answers of the model below after 40 steps of 0.5 from 0, clipped to [−2, 2].

Its threshold was 1: with a smaller one it stops after its first step (`active` is the paper's reversed).
"""


def test_forty_steps_are_those_of_another_implementation() -> None:
    stream = np.random.default_rng(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.tensor(0.7 * stream.normal(size=tuple(p.shape))))
    layout = layout_of_features("a", "b", "c", "d")
    descent = Descent(iterations=40, patience=1000, cost=0.0, step=0.5)
    rebuilt = model.invert_all([net], layout, 3, starts=np.zeros((3, 4), np.float32), descent=descent)
    np.testing.assert_allclose(rebuilt[1:], ART_VALUES[1:], atol=2e-5)
    # Of class 0 a late step overshoots: ours is the least cost met, as the paper has it, theirs the last.
    rows = torch.tensor(np.array([rebuilt[0], ART_VALUES[0]]), dtype=torch.float32)
    ours, last = torch.softmax(net(rows), dim=1)[:, 0].tolist()
    assert ours > last and np.abs(rebuilt[0] - ART_VALUES[0]).max() < 0.05
