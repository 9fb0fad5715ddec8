"""Models that other software saved, in every format that is read."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.models.saved import read_weights, round_files
from fedsim.core.models.weights import weights_of


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(one=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), two=nn.Linear(4, 2)))


def prefixed(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


def openfl(module: nn.Module) -> dict[str, Any]:
    """As its PyTorch task runner saves a model by default: beside its optimizer's state."""
    optimizer = torch.optim.Adam(module.parameters())
    return {"model_state_dict": module.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def nvflare(module: nn.Module) -> dict[str, Any]:
    """As PTModelPersistenceFormatManager.to_persistence_dict of NVFlare writes it."""
    return OrderedDict(model=OrderedDict(module.state_dict()), train_conf={"train": {"model": "Net"}})


WRITERS: dict[str, Any] = {
    "plain.pt": lambda m, f: torch.save(m.state_dict(), f),
    "nvflare.pt": lambda m, f: torch.save(nvflare(m), f),
    "lightning.pt": lambda m, f: torch.save({"epoch": 3, "state_dict": prefixed(m, "model.")}, f),
    "openfl.pth": lambda m, f: torch.save(openfl(m), f),
    "parallel.pth": lambda m, f: torch.save(prefixed(m, "module."), f),
    "opacus.bin": lambda m, f: torch.save(prefixed(m, "_module."), f),
    "names.safetensors": lambda m, f: save_file(dict(m.state_dict()), f),
    "names.npz": lambda m, f: np.savez(f, **{k: v.numpy() for k, v in m.state_dict().items()}),
    "flower.npz": lambda m, f: np.savez(f, *[v.numpy() for v in m.state_dict().values()]),
    "floats.npz": lambda m, f: np.savez(f, *weights_of(m).values()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    module = net()
    WRITERS[name](module, tmp_path / name)
    read, expected = read_weights(tmp_path / name, net()), weights_of(module)
    assert list(read) == list(expected)
    for parameter, array in expected.items():
        np.testing.assert_array_equal(read[parameter], array)
        assert read[parameter].dtype == np.float32


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    module = net()
    halves = {name: v.bfloat16() if v.is_floating_point() else v for name, v in module.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    read = read_weights(tmp_path / "half.safetensors", module)
    np.testing.assert_allclose(read["one.weight"], module.get_parameter("one.weight").detach(), rtol=0.01)


def test_onnx_initializers_are_weights(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    module = nn.Linear(3, 2)
    tensors = [numpy_helper.from_array(v.numpy(), name) for name, v in module.state_dict().items()]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", 3), ("y", 2))
    )
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    save(helper.make_model(helper.make_graph([node], "g", [x], [y], tensors)), tmp_path / "model.onnx")
    np.testing.assert_array_equal(
        read_weights(tmp_path / "model.onnx", module)["weight"], weights_of(module)["weight"]
    )


def test_a_pickle_of_objects_is_not_loaded(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "whole.pt")  # the module itself, a pickle that imports code
    with pytest.raises(
        InputError, match=r"holds Python objects, not weights alone; save model.state_dict\(\)"
    ):
        read_weights(tmp_path / "whole.pt", net())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"one.weight": torch.zeros(4, 3)}, r"there is no 'one.bias', which the model has"),
        (
            {**net().state_dict(), "one.bias": torch.zeros(9)},
            r"'one.bias' is \(9,\), the model's .* is \(4,\)",
        ),
        (
            {**net().state_dict(), "three.bias": torch.zeros(9)},
            r"it holds 'three.bias', which the model has not",
        ),
        ({"epoch": 3}, "it holds no state_dict, at its top or below 'model', 'state_dict'"),
    ],
)
def test_weights_of_another_architecture_are_refused(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=says):
        read_weights(tmp_path / "model.pt", net())


def test_a_damaged_file_is_said_in_a_sentence(tmp_path: Path) -> None:
    for name in ("model.pt", "model.safetensors", "model.npz"):
        (tmp_path / name).write_bytes(b"no model at all")
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_weights(tmp_path / name, net())
    np.savez(tmp_path / "few.npz", np.zeros(3))
    with pytest.raises(InputError, match="it holds 1 arrays, the model has 9"):
        read_weights(tmp_path / "few.npz", net())


def test_rounds_are_the_last_number_of_a_name(tmp_path: Path) -> None:
    for name in ("fold-2-round-10.pt", "fold-2-round-9.pt", "log.txt"):
        (tmp_path / name).touch()
    assert {t: file.name for t, file in round_files(tmp_path, 40).items()} == {
        9: "fold-2-round-9.pt",
        10: "fold-2-round-10.pt",
    }


def test_a_single_model_is_of_the_last_round(tmp_path: Path) -> None:
    (tmp_path / "FL_global_model.pt").touch()
    assert list(round_files(tmp_path, 40)) == [40]
    assert list(round_files(tmp_path / "FL_global_model.pt", 7)) == [7]
    (tmp_path / "best_FL_global_model.pt").touch()
    with pytest.raises(InputError, match="which round is it of"):
        round_files(tmp_path, 40)


def test_rounds_must_differ_and_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model is in it"):
        round_files(tmp_path, 1)
    with pytest.raises(InputError, match="no such file or folder"):
        round_files(tmp_path / "absent", 1)
    (tmp_path / "a-1.pt").touch()
    (tmp_path / "b-01.npz").touch()
    with pytest.raises(InputError, match="are both of round 1"):
        round_files(tmp_path, 1)
