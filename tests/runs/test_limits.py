"""What cannot work or cannot fit is one sentence, before any work starts."""

from __future__ import annotations

import math
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import document, scenario

from attacks.views.rounds import parse_rounds
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.scenario.reading import parse
from fedsim.runs import prepare
from fedsim.runs.checks import limits

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no attacks": (
        {"adversary": {"attacks": []}},
        "adversary.attacks = [] leaves the participant no attack; name one, or 'all'",
    ),
    "more than there are": (
        {"federation": {"min_parties": 100}},
        "federation.min_parties = 100: 3 of 3 parties train in a round; use at most 3",
    ),
    "more than take part": (
        {"federation": {"min_parties": 3, "fraction": 0.5}},
        r"min_parties = 3: 2 of 3 parties train in a round (federation.fraction = 0.5); use at most 2",
    ),
    "unknown device": ({"device": "banana"}, "device = 'banana': torch knows no such device; valid: cpu"),
    "near device": ({"device": "cpuu"}, "did you mean 'cpu'?"),
    "no numbers": ({"device": "meta"}, "device = 'meta'"),
    "empty device": ({"device": ""}, "device = ''"),
    "hidden": (
        {"model": {"name": "mlp", "hidden": [10**9, 10**9]}},
        "model.hidden = [1000000000, 1000000000]",
    ),
    "hidden int": ({"model": {"name": "mlp", "hidden": [10**30]}}, "model.hidden = ["),
    "batch": ({"training": {"batch": 10**15}}, "training.batch = 1000000000000000: that takes about"),
    "games": ({"games": 10**12}, "games = 1000000000000: that takes about"),
    "shadows": (
        {"adversary": {"attacks": ["lira"], "shadows": 10**12}},
        "adversary.shadows = 1000000000000: that takes about",
    ),
    "epsilon": (
        {"dp": {"all": {"epsilon": 1e300}}},
        "dp.all.epsilon = 1e+300 guarantees nothing; use at most 1e+06, or 'off'",
    ),
    "noise": (
        {"dp": {"all": {"noise_multiplier": 1e300}}},
        "dp.all.noise_multiplier = 1e+300: numbers would",
    ),
    "clipping": (
        {"dp": {"hospital-2": {"epsilon": 8, "clipping_norm": 1e300}}},
        "dp.hospital-2.clipping_norm = 1e+300: numbers would overflow",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    sections, sentence = WRONG[name]
    with pytest.raises(InputError) as caught:
        prepare.check(scenario(tmp_path, **sections), None)
    assert sentence in str(caught.value), caught.value
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"device = 'cuda:3': it is not there .*valid: cpu"):
        prepare.check(scenario(tmp_path, device="cuda:3"), None)


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [7, 5]}, {"name": "logistic"}])
def test_the_count_of_parameters_is_that_of_the_model(tmp_path: Path, model: dict[str, Any]) -> None:
    made = parse(document(tmp_path, model=model))
    module = zoo.build(made.model, (6,), 4)
    assert limits._model(made, (6,), 4)[0] == sum(p.numel() for p in module.parameters())


def test_the_count_of_a_cnns_parameters_is_its_own_but_for_the_last_bias(tmp_path: Path) -> None:
    made = parse(document(tmp_path, model={"name": "cnn", "hidden": [3, 5]}))
    module = zoo.build(made.model, (1, 9, 8), 4)
    assert limits._model(made, (1, 9, 8), 4)[0] == sum(p.numel() for p in module.parameters()) - 4


def test_memory_is_known_and_said_in_words() -> None:
    assert 2**28 < limits.memory_bytes() < math.inf
    assert [limits.in_words(size) for size in (12, 3 * 2**30, 2**70)] == ["12 bytes", "3 GiB", "1.05e+06 PiB"]


@pytest.mark.parametrize("text", ["1-99999999999", "1-2,99999999", f"1-{'9' * 5000}", f"{'9' * 5000}"])
def test_a_range_of_rounds_is_bounded(text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"no model of round 9+; valid: 0 … 3|is no round"):
        parse_rounds(text, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000
    assert parse_rounds("1-2,last", 3) == [1, 2, 3]


def test_the_sentences_name_what_is_there() -> None:
    assert re.fullmatch(r"\d+(\.\d+)? \w+", limits.in_words(limits.memory_bytes()))
