"""The wording of verdicts, at the borders: guessing inside the interval, few records, what must be held."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.report import verdicts
from fedsim.report.verdicts import Leak


def leak(value: float, low: float, high: float, attack: str = "loss") -> Leak:
    return Leak("participant", attack, 6, value, low, high, 50, 50)


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        (None, "ok", "not measured"),
        (leak(math.nan, math.nan, math.nan), "ok", "not measured"),
        (leak(0.6, 0.49, 0.7), "ok", "no leak shown"),
        (leak(0.6, 0.5, 0.74), "ok", "no leak shown"),
        (leak(0.7, 0.49, 0.75), "ok", "too few records to tell"),
        (leak(0.58, 0.51, 0.64), "warn", "slight leak"),
        (leak(0.6, 0.501, 0.64), "bad", "clear leak"),
        (leak(0.7, 0.6, 0.8), "bad", "clear leak"),
        (leak(0.75, 0.6, 0.8), "bad", "severe leak"),
    ],
)
def test_only_an_interval_above_one_half_is_a_leak(found: Leak | None, level: str, said: str) -> None:
    judged = verdicts.verdict(found)
    assert (judged.level, judged.words) == (level, said)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_no_verdict_stands_on_an_interval_with_guessing_in_it(one: float, two: float, three: float) -> None:
    low, value, high = sorted((one, two, three))
    said = verdicts.headline(leak(value, low, high), {"h": leak(value, low, high)}).words
    assert said.startswith("Yes") == (low > 0.5)


def test_the_headline_follows_the_whole_and_then_the_parties() -> None:
    nothing, some, wide = leak(0.52, 0.45, 0.6), leak(0.8, 0.7, 0.9), leak(0.6, 0.4, 0.8)

    def headline(overall: Leak | None, *leaks: Leak) -> verdicts.Verdict:
        return verdicts.headline(overall, {f"h{k}": found for k, found in enumerate(leaks)}, "if it holds x")

    assert headline(None).words.startswith("Not measured")
    none = headline(nothing, nothing, nothing).words
    assert none.startswith("No leak shown at any party") and "0.60 is not ruled out" in none
    assert headline(wide, nothing).words.startswith("Too few records to tell")
    partly = headline(nothing, nothing, some)
    assert partly.level == "bad"
    assert partly.words.startswith("At some parties, if it holds x: h1 (severe leak)")
    whole = headline(some, some, nothing).words
    assert whole.startswith("Yes, if it holds x: a severe leak") and "too few records" not in whole
    assert "too few records" in headline(some, nothing, nothing).words


@pytest.mark.parametrize(
    ("attack", "auxiliary", "said"),
    [
        ("lira", "population", "if it already holds the full records of all the patients it asks about"),
        ("lira", "disjoint", "holds only patients' records that trained nothing"),
        ("lira", "own", "no records but its own"),
        ("loss", "population", "if it holds the full record of the patient it asks about"),
        ("loss", "own", "if it holds the full record of the patient it asks about"),
    ],
)
def test_the_condition_is_what_the_attack_needs(attack: str, auxiliary: str, said: str) -> None:
    suite = pd.DataFrame(
        [("participant", "lira", True, False), ("participant", "loss", False, False)],
        columns=["observer", "attack", "shadows", "simulates"],
    )
    settings = AdversarySettings.model_validate({"auxiliary": auxiliary})
    assert said in verdicts.condition(settings, leak(0.9, 0.8, 0.95, attack), suite, "patient")
    assert verdicts.world_of(settings) == ("closed world" if auxiliary == "population" else "open world")


def test_every_world_is_named_and_none_is_called_a_leak_that_may_be_guessing() -> None:
    found = {"all": leak(0.99, 0.98, 1.0), "half": leak(0.52, 0.45, 0.6), "none": leak(0.8, 0.7, 0.9)}
    rungs = [verdicts.Rung(world, one, {}) for world, one in found.items()]
    said = verdicts.headline(found["all"], {}, "", verdicts.other_worlds(rungs)).words
    assert "AUC 0.99" in said and said.endswith(
        "; where half of the members are unknown to it: no leak shown (AUC 0.52, 95 % interval 0.45 to 0.60)"
        "; where it owns no candidate's record but the one it asks about: a severe leak (AUC 0.80, 95 % "
        "interval 0.70 to 0.90)"
    )


def row(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_accusations_are_counted_only_where_they_beat_the_prior() -> None:
    assert verdicts.named_rightly(row(0.756, 0.57, 0.876), 0.1, "patient") == (
        "of 100 patients it names, 76 are rightly named (57 to 88; at random 10), where 1 in 10 of those it "
        "asks about is a member"
    )
    for at_random in (row(0.3, 0.1, 0.6), row(0.1, 0.02, 0.2)):
        said = verdicts.named_rightly(at_random, 0.1, "patient")
        assert "not shown to be better" in said and "of 100" not in said
    for nobody in (None, row(math.nan, math.nan, math.nan)):
        assert "names nobody" in verdicts.named_rightly(nobody, 0.1, "patient")
