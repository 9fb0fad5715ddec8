"""Records from a function of the user's own, and from files of tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.tables import encoded, settings

from fedsim.core.data import table
from fedsim.core.errors import InputError
from fedsim.core.scenario.reading import load, parse

MODULE = """
import numpy as np
import pandas as pd

def frame():
    return pd.DataFrame({"age": [30.0, 40.0, 50.0, 60.0], "y": ["a", "b", "a", "b"]})

def images():
    return {"x": np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3), "y": [0, 1, 0, 1]}

def three():
    return 3

def broken():
    raise RuntimeError("no\\nsecond line")

def uneven():
    return {"x": np.zeros((3, 2)), "y": [0, 1]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_records.py").write_text(MODULE, encoding="utf-8")
    return tmp_path


def test_a_function_s_frame_is_a_table_like_any_other(folder: Path) -> None:
    own = table.read(settings("own_records:frame", folder=str(folder)))
    frame = pd.DataFrame({"age": [30.0, 40.0, 50.0, 60.0], "y": ["a", "b", "a", "b"]})
    frame.to_csv(folder / "same.csv", index=False)
    same = encoded(folder / "same.csv", bounds={"age": [0, 100]})
    drawn = encoded("own_records:frame", folder=str(folder), bounds={"age": [0, 100]})
    np.testing.assert_array_equal(drawn.features, same.features)
    assert (own.name, drawn.classes) == ("own_records:frame", same.classes)


def test_a_function_s_arrays_are_images_as_those_of_npz_are(folder: Path) -> None:
    pixels = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
    np.savez(folder / "same.npz", x=pixels, y=[0, 1, 0, 1])
    torch.save({"x": torch.from_numpy(pixels), "y": torch.tensor([0, 1, 0, 1])}, folder / "same.pt")
    expected = encoded(folder / "same.npz")
    assert expected.features.shape == (4, 1, 3, 3)
    for source in ("own_records:images", folder / "same.pt"):
        drawn = encoded(source, folder=str(folder))
        np.testing.assert_array_equal(drawn.features, expected.features)
        assert drawn.classes == expected.classes


def test_a_tensor_file_with_objects_is_not_unpickled(folder: Path) -> None:
    torch.save({"x": pd.DataFrame({"a": [1]})}, folder / "objects.pt")
    with pytest.raises(InputError, match="holds Python objects"):
        table.read(settings(folder / "objects.pt"))
    torch.save([torch.zeros(3)], folder / "list.pt")
    with pytest.raises(InputError, match="it holds list; save a dict of tensors"):
        table.read(settings(folder / "list.pt"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("three", "it returned int; it must return a pandas DataFrame, or arrays by name"),
        ("broken", "calling it failed: RuntimeError: no$"),
        ("uneven", "array 'x' has 3 records, 'y' has 2"),
        ("imagse", "no callable 'imagse'; did you mean 'images'?"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_in_a_sentence(folder: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        table.read(settings(f"own_records:{name}", folder=str(folder)))


def test_a_scenario_s_function_is_looked_for_beside_the_scenario(folder: Path) -> None:
    file = folder / "scenario.toml"
    file.write_text('[data]\npath = "own_records:frame"\nlabel = "y"\n', encoding="utf-8")
    data = load(file).data
    assert (data.path, data.folder) == ("own_records:frame", str(folder))
    per_party = parse({"data": {"path": {"n": "own_records:frame", "s": "s.csv"}, "label": "y"}}, "", folder)
    assert per_party.data.files == ["own_records:frame", str(folder / "s.csv")]
