"""Models by name, custom factories, weights as arrays, and what DP-SGD refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.models import private, weights, zoo
from fedsim.core.models.layers import dropout, hidden_units, linear_stack
from fedsim.core.scenario.training import ModelSettings


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("logistic", (10,)),
        ("logistic", (1, 8, 8)),
        ("mlp", (10,)),
        ("mlp", (1, 8, 8)),
        ("cnn", (1, 8, 8)),
        ("cnn", (1, 28, 28)),
        ("cnn", (3, 9, 7)),
    ],
)
def test_models_map_records_to_logits(name: str, shape: tuple[int, ...]) -> None:
    module = zoo.build(ModelSettings(name=name, hidden=[6, 5]), shape, 3)
    assert module(torch.zeros(4, *shape)).shape == (4, 3)
    private.check_dp_ready(module, shape)


def test_hidden_widths_are_the_scenario_s() -> None:
    module = zoo.build(ModelSettings(name="mlp", hidden=[7, 5]), (10,), 3)
    shapes = {name: array.shape for name, array in weights.weights_of(module).items()}
    assert shapes == {
        "linear1.weight": (7, 10),
        "linear1.bias": (7,),
        "linear2.weight": (5, 7),
        "linear2.bias": (5,),
        "output.weight": (3, 5),
        "output.bias": (3,),
    }


def test_the_seed_decides_the_weights_and_the_global_stream_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (
        weights.weights_of(zoo.build(ModelSettings(), (10,), 2, seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first["output.weight"], other["output.weight"])


def test_a_cnn_needs_images_that_are_large_enough() -> None:
    with pytest.raises(InputError, match=r"model\.name = 'cnn'.*\(10,\)"):
        zoo.build(ModelSettings(name="cnn"), (10,), 2)
    with pytest.raises(InputError, match=r"model\.hidden = \[4, 4, 4, 4\].*at most 3"):
        zoo.build(ModelSettings(name="cnn", hidden=[4] * 4), (1, 8, 8), 2)


def test_weights_round_trip_and_are_copies() -> None:
    source, target = (zoo.build(ModelSettings(), (10,), 2, seed) for seed in (1, 2))
    taken = weights.weights_of(source)
    weights.load_weights(target, taken)
    np.testing.assert_equal(weights.weights_of(target), taken)
    taken["output.bias"][:] = 9
    assert not (weights.weights_of(source)["output.bias"] == 9).any()
    assert all(array.dtype == np.float32 for array in taken.values())


def test_weights_of_another_model_are_refused_and_nothing_is_loaded() -> None:
    module = zoo.build(ModelSettings(), (10,), 2)
    before = weights.weights_of(module)
    wrong = before | {"output.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"output\.bias"):
        weights.load_weights(module, wrong)
    with pytest.raises(ValueError, match=r"linear1\.weight"):
        weights.load_weights(module, {})
    np.testing.assert_equal(weights.weights_of(module), before)


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class ScaledLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def frozen(layer: nn.Linear) -> nn.Linear:
    layer.weight.requires_grad_(False)
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return layer


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return stack(layer, nn.ReLU(), layer)


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return stack(first, nn.ReLU(), second)


def with_more(part: nn.Module, more: nn.Module | nn.Parameter) -> nn.Module:
    """The part with a parameter or a layer of its own, which its forward pass may not even use."""
    if isinstance(more, nn.Parameter):
        part.register_parameter("more", more)
    else:
        part.add_module("more", more)
    return part


@pytest.mark.parametrize(
    "module",
    [
        stack(nn.Linear(4, 3), nn.ReLU(), ScaledLinear(3, 2)),
        stack(with_more(nn.Linear(4, 3), nn.Linear(1, 1)), nn.ReLU(), nn.Linear(3, 2)),
        stack(nn.Linear(4, 3), with_more(nn.ReLU(), nn.Parameter(torch.ones(1))), nn.Linear(3, 2)),
        with_more(stack(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), nn.Parameter(torch.ones(1))),
        hooked(stack(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))),
        stack(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        stack(nn.Linear(4, 3), nn.ReLU()),
        stack(nn.Linear(4, 3), nn.Linear(3, 2)),
        stack(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)),
        stack(frozen(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2)),
        stack(hooked(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2)),
        stack(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)),
        stack(nn.Linear(4, 2).double()),
        stack(),
        shared(),
        tied(),
        nn.Linear(4, 2),
    ],
    ids=str,
)
def test_only_exactly_known_networks_count_as_linear_stacks(module: nn.Module) -> None:
    assert linear_stack(module) is None


def test_own_models_are_linear_stacks_with_and_without_flatten() -> None:
    for name, layers in [("logistic", 1), ("mlp", 2)]:
        for shape in [(6,), (1, 2, 3)]:
            found = linear_stack(zoo.build(ModelSettings(name=name), shape, 2))
            assert found is not None
            assert len(found) == layers


@pytest.mark.parametrize(
    ("name", "shape", "layers"), [("mlp", (6,), 2), ("cnn", (1, 8, 8), 2), ("logistic", (6,), 0)]
)
def test_dropout_leaves_out_hidden_units_while_training_and_for_a_while(name, shape, layers) -> None:
    module = zoo.build(ModelSettings(name=name, hidden=[400, 300]), shape, 2).train()
    assert len(hidden_units(module)) == layers
    x, seen = torch.rand(16, *shape) + 1, []
    plain = module(x)
    torch.manual_seed(0)
    with pytest.raises(KeyError), dropout(module, 0.25):
        for layer in hidden_units(module):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
        module(x)
        assert torch.equal(module.eval()(x), plain)
        raise KeyError
    assert torch.equal(module.train()(x), plain)
    for before, after in seen[:layers]:
        alive = before > 0
        share = float((after[alive] == 0).float().mean())
        assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / int(alive.sum())) ** 0.5)
        kept = alive & (after > 0)
        torch.testing.assert_close(after[kept], before[kept] / 0.75)


def test_ghost_clipping_is_right_for_own_models_and_not_for_a_layer_that_is_used_twice() -> None:
    for name in ("mlp", "cnn"):
        module = zoo.build(ModelSettings(name=name, hidden=[4]), (1, 8, 8), 3)
        assert private.ghost_problem(module, (1, 8, 8)) == ""
    assert private.ghost_problem(Block(nn.GroupNorm(2, 6)), (4,)) == ""
    assert "tying" in private.ghost_problem(shared(), (4,))


FACTORIES = """
import torch
from torch import nn
from helper import width

def good(input_shape, classes):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, classes))

def wrong_shape(input_shape, classes):
    return nn.Linear(input_shape[0], classes + 1)

def no_module(input_shape, classes):
    return 3

def nothing_to_train(input_shape, classes):
    return nn.Identity()

def raises(input_shape, classes):
    raise RuntimeError("no such thing\\nsecond line")

def cannot_forward(input_shape, classes):
    return nn.Linear(input_shape[0] + 1, classes)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mymodels.py").write_text(FACTORIES)
    (tmp_path / "helper.py").write_text("width = 9\n")
    (tmp_path / "broken.py").write_text("import no_such_dependency\n")
    (tmp_path / "typo.py").write_text("def f(:\n")
    return tmp_path


def build_custom(folder: Path, name: str) -> nn.Module:
    return zoo.build(ModelSettings(name=name, folder=str(folder)), (4,), 2, seed=3)


def test_a_custom_factory_is_imported_from_its_folder_and_seeded(folder: Path) -> None:
    path = list(sys.path)
    first, again = (weights.weights_of(build_custom(folder, "mymodels:good")) for _ in range(2))
    assert first["0.weight"].shape == (9, 4)
    np.testing.assert_equal(first, again)
    assert sys.path == path


def test_a_module_of_the_same_name_in_another_folder_is_another_module(folder: Path, tmp_path: Path) -> None:
    build_custom(folder, "mymodels:good")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mymodels.py").write_text(
        "from torch import nn\ndef good(i, c): return nn.Linear(i[0], c, bias=False)\n"
    )
    assert list(weights.weights_of(build_custom(other, "mymodels:good"))) == ["weight"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mymodel:good", "no module 'mymodel'"),
        ("broken:f", "no module 'no_such_dependency'"),
        ("typo:f", "importing 'typo' failed: SyntaxError"),
        ("mymodels:goood", "no callable 'goood'; did you mean 'good'"),
        ("mymodels:number", "no callable 'number'"),
        ("mymodels:no_module", "returned int, not a torch.nn.Module"),
        ("mymodels:nothing_to_train", "no parameters to train"),
        ("mymodels:wrong_shape", r"gives shape \(2, 3\); it must be \(2, 2\)"),
        ("mymodels:raises", "RuntimeError: no such thing$"),
        ("mymodels:cannot_forward", r"fails on a batch of records of shape \(4,\)"),
    ],
)
def test_a_custom_factory_that_does_not_work_is_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_custom(folder, name)
    assert str(caught.value).startswith(f"model.name = '{name}'")
    assert "\n" not in str(caught.value)


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False)], ids=str)
def test_batch_norm_is_refused_by_name(norm: nn.Module) -> None:
    with pytest.raises(InputError, match=r"layer 'body\.1'.*BatchNorm1d.*GroupNorm"):
        private.check_dp_ready(Block(norm))


def test_group_norm_and_dropout_are_fine_under_dp() -> None:
    private.check_dp_ready(Block(nn.GroupNorm(2, 6)), (4,))
    private.check_dp_ready(Block(nn.Dropout(0.5)), (4,))


def test_what_opacus_rejects_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"layer 'recurrent'.*LSTM"):
        module = nn.Module()
        module.recurrent = nn.LSTM(4, 2)
        private.check_dp_ready(module)


class Centred(nn.Linear):
    """Mixes the records of a batch without any layer that one could know by name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0))


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_custom_modules_are_tried_before_the_first_round() -> None:
    with pytest.raises(InputError, match="depends on the other records"):
        private.check_dp_ready(Centred(4, 2), (4,))
    with pytest.raises(InputError, match=r"spare\.weight"):
        private.check_dp_ready(Idle(), (4,))


class Standardised(nn.Module):
    """A running mean of private records, in a layer without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x


class Counting(nn.Linear):
    """Parameters and a buffer that every batch moves."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("largest", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.detach().max()))
        return super().forward(x)


class Clamped(nn.Linear):
    """Weights that the forward pass bounds, which shows only once they are large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.clamp_(-5, 5)
        return super().forward(x)


class Remembering(nn.Module):
    """Keeps the last batch in an attribute that is no buffer."""

    last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, self.last = self.last, x.detach().mean(0)
        return x if before is None else x + before


class MixingCrowds(nn.Module):
    """Looks at its neighbours only in a batch that is large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.roll(1, 0) if len(x) > 40 else x


class Broken(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 0 * 0


class Positions(nn.Module):
    """A position embedding, looked up once for all records or once for each."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.repeated, self.embedding, self.out = repeated, nn.Embedding(4, 3), nn.Linear(12, 2)
        self.register_buffer("position", torch.arange(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        position = self.position.expand(len(x), -1) if self.repeated else self.position
        return self.out((x[:, :, None] + self.embedding(position)).flatten(1))


class Words(nn.Module):
    def __init__(self, max_norm: float | None = None) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(8, 3, max_norm=max_norm), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.words((x * 7).long()).flatten(1))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Block(nn.Sequential(nn.Linear(6, 4), Standardised(), nn.Linear(4, 6))), r"'body\.1\.1'.*'mean'"),
        (nn.Sequential(Counting(), nn.Linear(4, 2)), "layer '0'.*'largest'"),
        (nn.Sequential(Clamped(4, 4), nn.Linear(4, 2)), "layer '0'.*'weight'"),
        (
            nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
            "layer '0",
        ),
        (nn.Sequential(Remembering(), nn.Linear(4, 2)), "earlier batches"),
        (nn.Sequential(MixingCrowds(), nn.Linear(4, 2)), "other records in its batch"),
        (nn.Sequential(Broken(4, 4), nn.Linear(4, 2)), "is not finite"),
        (Positions(repeated=False), "layer 'embedding'.*one record each"),
        (Words(max_norm=100.0), "layer 'words'.*max_norm = 100"),
    ],
    ids=[
        "buffer",
        "buffer beside parameters",
        "clamp",
        "spectral norm",
        "attribute",
        "large batches",
        "not finite",
        "positions",
        "max_norm",
    ],
)
def test_what_lets_private_data_past_the_noise_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        private.check_dp_ready(module, (4,))


@pytest.mark.parametrize(
    "module", [Positions(repeated=True), Words(), shared()], ids=["positions", "words", "tied"]
)
def test_what_keeps_to_its_record_is_fine_under_dp(module: nn.Module) -> None:
    private.check_dp_ready(module, (4,))


def test_a_buffer_that_begins_to_change_in_training_is_refused_after_it() -> None:
    module = nn.Sequential(Counting(), nn.Linear(4, 2))
    with private.constant_buffers(module), torch.no_grad():
        module[1](torch.rand(3, 4))  # the buffer is left alone
    with pytest.raises(InputError, match=r"layer '0'.*'largest'"), private.constant_buffers(module):
        module(torch.rand(3, 4))


def test_checking_leaves_the_module_as_it_was() -> None:
    module = Block(nn.GroupNorm(2, 6)).eval()
    before, attributes = weights.weights_of(module), set(vars(next(module.parameters())))
    private.check_dp_ready(module, (4,))
    np.testing.assert_equal(weights.weights_of(module), before)
    assert set(vars(next(module.parameters()))) == attributes
    assert not module.training


def test_a_linear_stack_is_checked_and_trained_without_importing_opacus() -> None:
    code = (
        "import sys, fedsim.core.training.dp\n"
        "from fedsim.core.models.private import check_dp_ready\n"
        "from fedsim.core.models.zoo import build\n"
        "from fedsim.core.scenario.training import ModelSettings\n"
        "check_dp_ready(build(ModelSettings(), (4,), 2))\n"
        "assert 'opacus' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_the_weights_are_what_torchs_own_seed_gives() -> None:
    model = ModelSettings(hidden=[8])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = [nn.Linear(4, 8), nn.Linear(8, 3)]
    built = [layer for layer in zoo.build(model, (4,), 3, seed=7) if isinstance(layer, nn.Linear)]
    for layer, reference in zip(built, expected, strict=True):
        assert torch.equal(layer.weight, reference.weight) and torch.equal(layer.bias, reference.bias)
