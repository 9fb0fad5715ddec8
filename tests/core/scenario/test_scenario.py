from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.core.errors import InputError
from fedsim.core.scenario import reading
from fedsim.core.scenario.settings import Scenario


def write(folder: Path, text: str) -> Path:
    path = folder / "s.toml"
    path.write_text(text, encoding="utf-8")
    return path


WRONG = {
    "[trainin]\nlr = 1": "unknown key 'trainin'; did you mean 'training'?",
    "[training]\nlrr = 1": "unknown key 'lrr' in [training]; did you mean 'lr'?",
    "[training]\nlr = 'fast'": "training.lr = 'fast': it should be a valid number",
    "[training]\nlr = 0": "training.lr = 0: it should be greater than 0",
    "[training]\nlr = nan": "training.lr = nan: it should be",
    "games = 0": "games = 0: it should be greater than or equal to 1",
    "[dp.all]\nepsilon = 0": "dp.all.epsilon = 0: it should be greater than 0",
    "[dp.all]\nepsilon = 1\ndelta = 1.0": "dp.all.delta = 1.0: it should be less than 1",
    "[dp.all]\nepsilon = 1\ndleta = 1e-5": "unknown key 'dleta' in [dp.all]; did you mean 'delta'?",
    "[dp.all]\ndelta = 1e-5": "[dp.all] set exactly one of 'epsilon' and 'noise_multiplier'",
    "[dp]\nall = 'on'": "dp.all = 'on': it should be 'off' or a table such as {epsilon = 8}",
    "[federation]\nstrategy = 'fedav'": "unknown strategy; did you mean 'fedavg'?",
    "[federation]\nfraction = 1.5": "federation.fraction = 1.5: it should be less than or equal to 1",
    "[model]\nname = 'mpl'": "unknown model; did you mean 'mlp'?",
    "[data]\nbounds = {age = [0, nan]}": "the bounds of 'age' are [0.0, nan]",
    "[data]\nbounds = {age = [90, 10]}": "the bounds of 'age' are [90.0, 10.0]",
    "[data]\npath = 'x.csv'": "[data] 'path' needs 'label', the column to predict",
    "[data]\nname = 'a'\npath = 'b'\nlabel = 'c'": "both 'name' and 'path' are set",
    "name = '../up'": "name = '../up'",
    "[parties\ncount = 2": "not valid TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_each_mistake_is_one_sentence_with_file_key_and_value(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        reading.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert WRONG[text] in message
    assert "\n" not in message and "function-" not in message


def test_saved_scenario_has_every_default_and_reads_back_the_same(tmp_path: Path) -> None:
    loaded = reading.load(write(tmp_path, "seed = 5\n[dp.a]\nepsilon = 3\n[data]\nname = 'digits'"))
    reading.save(loaded, tmp_path / "saved" / "scenario.toml")
    text = (tmp_path / "saved" / "scenario.toml").read_text()
    assert "lr = 0.1" in text and 'accountant = "prv"' in text
    again = reading.load(tmp_path / "saved" / "scenario.toml")
    assert again == loaded


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    path = write(tmp_path, "[training]\nlr = 0.5")
    loaded = reading.load(
        path, ["training.lr=0.05", "federation.strategy=fedprox", "model.hidden=[3, 4]", "games=2"]
    )
    assert loaded.training.lr == 0.05 and loaded.games == 2
    assert loaded.federation.strategy == "fedprox" and loaded.model.hidden == [3, 4]
    with pytest.raises(InputError, match=r"--set training: expected key=value"):
        reading.load(path, ["training"])
    with pytest.raises(InputError, match=r"'lr' is a value, not a section"):
        reading.load(path, ["training.lr.x=1"])


def test_dp_switch(tmp_path: Path) -> None:
    path = write(tmp_path, "[dp.all]\nnoise_multiplier = 1.0\ndelta = 1e-3\n[dp.c]\nepsilon = 1")
    loaded = reading.load(path, dp=["all=8", "b=3", "c=off"])
    a, b = loaded.dp_of("a"), loaded.dp_of("b")
    assert a is not None and (a.epsilon, a.noise_multiplier, a.delta) == (8, None, 1e-3)
    assert b is not None and (b.epsilon, b.delta) == (3, 1e-3)
    assert loaded.dp_of("c") is None
    for wrong, hint in {
        "8": "expected party=ε",
        "all=much": "ε is 'much'",
        "all=-1": "greater than 0",
    }.items():
        with pytest.raises(InputError, match=hint):
            reading.load(path, dp=[wrong])


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    text = "[data]\npath = {a = '../a.csv', b = '/b.csv'}\nlabel = 'y'\n[model]\nname = 'nets:net'"
    loaded = reading.load(write(tmp_path / "below", text))
    assert loaded.data.path == {"a": str(tmp_path / "a.csv"), "b": "/b.csv"}
    assert loaded.model.folder == str(tmp_path / "below")


def test_schema_describes_every_key() -> None:
    schema = Scenario.model_json_schema()
    assert schema["properties"]["training"]
    assert schema["$defs"]["TrainingSettings"]["additionalProperties"] is False
    assert "noise multiplier" in str(schema["$defs"]["DPSettings"]["properties"]["epsilon"])
