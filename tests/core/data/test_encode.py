from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedsim.core import rng
from fedsim.core.data import encode as encoding
from fedsim.core.data import table
from fedsim.core.data.encode import Encoded, deduplicate, draw_whole, encode
from fedsim.core.data.schema import Column, Schema, categories, numbers
from fedsim.core.data.table import Table
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

Write = Callable[..., str]


def stream() -> np.random.Generator:
    return rng.generator(0, "data")


def table_of(columns: dict[str, list], schema: Schema) -> Table:
    return Table(pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in columns.items()}), schema, "toy", {})


def own(frame: pd.DataFrame, **settings: object) -> tuple[Table, DataSettings]:
    """A table of one's own, of which nothing is declared."""
    said = DataSettings.model_validate({"path": "toy.csv", "label": "y", **settings})
    columns = tuple(Column(name) for name in frame if name not in ("y", said.party, said.person))
    classes = table.classes_of(frame["y"], "toy")
    return Table(frame, Schema(columns, "y", classes, said.party, said.person), "toy", {}), said


def undeclared(n: int = 200, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "a": draw.normal(50, 10, n).astype(str),
            "b": draw.choice(["u", "v", "w"], n),
            "y": draw.choice(["n", "p"], n),
        }
    ).astype(object)


DECLARED = Schema(
    (
        *numbers({"bmi": (10, 50), "chol": (0, 400)}, missing=["chol"]),
        *categories({"sex": ("f", "m"), "code": ("1", "2")}),
    ),
    label="y",
    classes=("no", "yes"),
    party="site",
    person="who",
)
CELLS = {
    "bmi": ["30", "50", "5", None, "20"],
    "chol": [100.0, None, 900.0, 200.0, 0.0],
    "sex": ["f", "m", None, "x", "f"],
    "code": [1, 2.0, "1", None, "3"],
    "y": ["yes", "no", "no", "yes", "no"],
    "site": ["A", "B", "A", "B", "A"],
    "who": ["p1", None, "p1", None, 7.0],
}


def test_a_declared_table_is_encoded_as_by_hand() -> None:
    encoded = encode(table_of(CELLS, DECLARED), DataSettings(), stream())
    assert encoded.feature_names == (
        "bmi", "chol", "chol missing", "sex=f", "sex=m", "code=1", "code=2"
    )  # fmt: skip
    by_hand = [
        [0, -1, 0, 1, 0, 1, 0],
        [2, 0, 1, 0, 1, 0, 1],
        [-2, 2, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [-1, -2, 0, 1, 0, 0, 0],
    ]
    np.testing.assert_array_equal(encoded.features, np.array(by_hand, np.float32))
    assert encoded.features.dtype == np.float32
    assert encoded.labels.tolist() == [1, 0, 0, 1, 0] and encoded.labels.dtype == np.int64
    assert encoded.party is not None and encoded.party.tolist() == ["A", "B", "A", "B", "A"]
    assert encoded.person is not None
    assert encoded.person.tolist() == ["p1", "(unnamed 1)", "p1", "(unnamed 3)", "7"]
    assert encoded.notices == ()


def test_settings_override_the_schema() -> None:
    said = DataSettings(
        bounds={"bmi": (0, 100)}, categories={"sex": ["m"]}, ignore=["chol"], label="code", party=None
    )
    encoded = encode(table_of(CELLS, DECLARED), said, stream())
    assert encoded.feature_names == ("bmi", "sex=m")
    assert encoded.classes == ("1", "2")
    np.testing.assert_allclose(encoded.features[:, 0], [-0.8, 0, -1.8], atol=1e-6)
    assert encoded.labels.tolist() == [0, 1, 0]
    assert encoded.owner_notices == ("2 record(s) without 'code' were dropped",)


def test_records_without_label_or_party_are_dropped() -> None:
    cells = {**CELLS, "y": [None, "no", "no", "yes", "no"], "site": ["A", "B", None, None, "A"]}
    encoded = encode(table_of(cells, DECLARED), DataSettings(), stream())
    assert encoded.labels.tolist() == [0, 0]
    assert encoded.owner_notices == (
        "1 record(s) without 'y' were dropped",
        "2 record(s) without 'site' were dropped",
    )


def test_pixels_are_mapped_to_zero_one() -> None:
    columns = numbers({f"p{i}": (0, 255) for i in range(6)})
    frame = pd.DataFrame(
        np.arange(12).reshape(2, 6) * 15, columns=[f"p{i}" for i in range(6)], dtype=np.uint8
    )
    schema = Schema(columns, "y", ("0", "1"), image=(1, 2, 3))
    encoded = encode(Table(frame.assign(y=[1, 0]), schema, "toy", {}), DataSettings(), stream())
    expected = (np.arange(12).reshape(2, 1, 2, 3) * 15 / 255).astype(np.float32)
    np.testing.assert_allclose(encoded.features, expected, rtol=1e-6)
    assert encoded.labels.tolist() == [1, 0]


def test_undeclared_columns_are_learnt_from_the_records_set_aside() -> None:
    frame = undeclared(500)
    made, said = own(frame, public_share=0.1)
    encoded = encode(made, said, stream())
    # The same draw by hand: the first 50 of the stream's permutation.
    aside = stream().permutation(500)[:50]
    public = frame["a"].astype(float).to_numpy()[aside]
    low, high = np.percentile(public, [1, 99])
    rest = np.delete(frame["a"].astype(float).to_numpy(), aside)
    by_hand = np.clip((rest - low) / (high - low), 0, 1) * 4 - 2
    np.testing.assert_allclose(encoded.features[:, 0], by_hand, atol=1e-5)
    assert encoded.feature_names == ("a", "b=u", "b=v", "b=w")
    assert len(encoded) == 450
    assert "2 column(s) have no declared bounds or categories (a, b): 50 of 500 records" in encoded.notices[0]


@pytest.mark.parametrize(("n", "kept"), [(1000, 950), (200, 180), (60, 48), (26, 21)])
def test_how_many_records_are_set_aside(n: int, kept: int) -> None:
    made, said = own(undeclared(n))
    assert len(encode(made, said, stream())) == kept


def test_too_few_records_to_set_any_aside() -> None:
    made, said = own(undeclared(20))
    with pytest.raises(InputError, match=r"toy: 20 records are too few .* for a, b; declare data.bounds"):
        encode(made, said, stream())


def test_declaring_every_column_keeps_every_record() -> None:
    made, said = own(undeclared(20), bounds={"a": [0, 100]}, categories={"b": ["u", "v"]})
    encoded = encode(made, said, stream())
    assert len(encoded) == 20 and encoded.notices == ()


def test_a_public_table_keeps_every_record(write: Write) -> None:
    public = write("b,a,z\nu,0,1\nv,200,1\nu,,1\nv,,2\n", "public.csv")
    made, said = own(undeclared(20), public=public)
    encoded = encode(made, said, stream())
    assert encoded.feature_names == ("a", "a missing", "b=u", "b=v")
    assert len(encoded) == 20
    assert "taken from 4 public records in public.csv" in encoded.notices[0]
    assert set(encoded.hashes) == {"public/public.csv"}
    low, high = np.percentile([0, 200], [1, 99])
    values = made.frame["a"].astype(float).to_numpy()
    np.testing.assert_allclose(encoded.features[:, 0], (values - low) / (high - low) * 4 - 2, atol=1e-5)


def test_a_public_table_without_the_column(write: Write) -> None:
    made, said = own(undeclared(20), public=write("bb,a\nu,0\n", "public.csv"))
    with pytest.raises(InputError, match=r"public\.csv has no column 'b'; "):
        encode(made, said, stream())


def test_records_set_aside_are_public_with_their_labels_and_encoded_alike() -> None:
    frame = undeclared(500)
    made, said = own(frame, public_share=0.1)
    encoded = encode(made, said, stream())
    aside = np.sort(stream().permutation(500)[:50])
    assert encoded.public is not None
    assert [encoded.classes[label] for label in encoded.public.labels] == frame["y"].iloc[aside].tolist()
    columns = [encoded.feature_names.index(f"b={value}") for value in frame["b"].iloc[aside]]
    assert (encoded.public.features[np.arange(50), columns] == 1).all()
    together = np.concatenate([encoded.public.features[:, 0], encoded.features[:, 0]])
    numbers = frame["a"].astype(float).to_numpy()
    order = np.concatenate([aside, np.delete(np.arange(500), aside)])
    inside = np.abs(together) < 2  # clipped elsewhere
    slope, offset = np.polyfit(numbers[order][inside], together[inside], 1)
    np.testing.assert_allclose(together[inside], slope * numbers[order][inside] + offset, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a,b,y\n50,u,n\n60,v,?\n70,u,p\n0,u,other\n", [0, 1]),  # those with a label of the task
        ("a,b\n50,u\n", None),  # no label at all
        ("a,y\n50,n\n", None),  # a feature is missing
        ("a,b,y\n50,u,other\n", None),
    ],
)
def test_a_public_table_gives_public_records_where_it_can(write: Write, text: str, labels) -> None:
    declared = {"bounds": {"a": [0, 100]}, "categories": {"b": ["u", "v"]}}
    made, said = own(undeclared(20), public=write(text, "public.csv"), **declared)
    encoded = encode(made, said, stream())
    if labels is None:
        assert encoded.public is None
        return
    np.testing.assert_array_equal(encoded.public.labels, labels)
    np.testing.assert_allclose(encoded.public.features, [[0, 1, 0], [0.8, 1, 0]], atol=1e-6)


def test_without_public_records_there_are_none() -> None:
    made, said = own(undeclared(20), bounds={"a": [0, 100]}, categories={"b": ["u", "v"]})
    assert encode(made, said, stream()).public is None


def test_sector_bounds_hold_for_undeclared_columns_only() -> None:
    frame = undeclared(50).rename(columns={"a": "Age"})
    made, said = own(frame, categories={"b": ["u", "v", "w"]})
    encoded = encode(made, said, stream(), {"age": (0.0, 120.0)})
    np.testing.assert_allclose(encoded.features[:, 0], frame["Age"].astype(float) / 30 - 2, atol=1e-5)
    assert "'Age' [0.0, 120.0]" in encoded.notices[0]
    made, said = own(frame, categories={"b": ["u"]}, bounds={"Age": [0, 200]})
    encoded = encode(made, said, stream(), {"age": (0.0, 120.0)})
    np.testing.assert_allclose(encoded.features[:, 0], frame["Age"].astype(float) / 50 - 2, atol=1e-5)
    assert encoded.notices == ()


def test_columns_of_no_use_are_dropped_with_a_notice() -> None:
    frame = undeclared(300).assign(
        constant="1", same="x", empty=None, key=[f"k{i}" for i in range(300)], only=7.0
    )
    made, said = own(frame)
    encoded = encode(made, said, stream())
    assert encoded.feature_names == ("a", "b=u", "b=v", "b=w")
    dropped = " ".join(encoded.notices)
    for name, reason in {
        "constant": "constant",
        "same": "constant",
        "empty": "empty",
        "key": "identifier",
    }.items():
        assert f"'{name}' was dropped: " in dropped and reason in dropped


def test_mostly_numbers_are_numbers_and_the_others_count_as_missing() -> None:
    frame = undeclared(200)
    frame.loc[::40, "a"] = "about 50"
    frame.loc[1::40, "a"] = "inf"
    made, said = own(frame, kinds={"a": "number"})
    encoded = encode(made, said, stream())
    assert encoded.feature_names[0] == "a"
    assert (
        "value(s) of 'a' are not finite numbers and count as missing: 'about 50'" in encoded.owner_notices[0]
    )
    assert np.isfinite(encoded.features).all()


def test_declared_kinds_are_followed() -> None:
    frame = undeclared(300)
    frame["code"] = [str(i % 3) for i in range(300)]
    made, said = own(frame, kinds={"code": "category"})
    assert "code=2" in encode(made, said, stream()).feature_names
    made, said = own(frame)
    assert "code" in encode(made, said, stream()).feature_names


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bounds": {"aa": [0, 1]}}, "data.bounds: no column 'aa'"),
        ({"kinds": {"a": "category"}, "bounds": {"a": [0, 1]}}, "'a' is declared a category as well"),
        ({"bounds": {"b": [0, 1]}, "categories": {"b": ["u"]}}, "'b' is declared a number as well"),
        ({"bounds": {"a": [0, 1], "b": [0, 1]}}, "column 'b' is declared a number but holds none"),
        ({"ignore": ["a", "b"]}, "no feature column is left"),
        ({"ignore": ["zz"]}, "data.ignore: no column 'zz'"),
    ],
)
def test_contradictions_get_one_sentence(settings: dict, sentence: str) -> None:
    made, said = own(undeclared(50), **settings)
    with pytest.raises(InputError, match=sentence) as caught:
        encode(made, said, stream())
    assert "\n" not in str(caught.value) and "toy" in str(caught.value)


@hypothesis_settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 1e6]))
def test_changing_private_records_changes_only_their_own_features(seed: int, scale: float) -> None:
    frame = undeclared(150, seed=1)
    made, said = own(frame)
    before = encode(made, said, stream())
    draw = np.random.default_rng(seed)
    public = stream().permutation(150)[:20]
    private = np.setdiff1d(np.arange(150), public)
    changed = draw.choice(private, size=40, replace=False)
    flipped = frame.copy()
    flipped.loc[changed, "a"] = (draw.normal(size=40) * scale).astype(str)
    flipped.loc[changed, "b"] = draw.choice(["u", "new", "w"], 40)
    after = encode(own(flipped)[0], said, stream())
    unchanged = ~np.isin(private, changed)
    assert before.feature_names == after.feature_names
    np.testing.assert_array_equal(before.features[unchanged], after.features[unchanged])


def test_the_same_stream_gives_the_same_encoding() -> None:
    made, said = own(undeclared(300), max_records=100)
    one, two = encode(made, said, stream()), encode(made, said, stream())
    np.testing.assert_array_equal(one.features, two.features)
    other = encode(made, said, rng.generator(1, "data"))
    assert len(one) == 100 and not np.array_equal(one.features, other.features)
    assert "100 of 280 records were drawn (data.max_records)" in one.notices


def test_a_person_is_public_or_private_and_in_the_subset_or_not() -> None:
    frame = undeclared(300).assign(who=[f"p{i // 3}" for i in range(300)])
    made, said = own(frame, person="who", max_records=90)
    encoded = encode(made, said, stream())
    assert encoded.person is not None
    _, counts = np.unique(encoded.person.astype(str), return_counts=True)
    assert (counts == 3).all() and len(encoded) == 90


@given(
    units=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    wanted=st.integers(0, 80),
    seed=st.integers(0, 99),
)
def test_whole_units_are_drawn_and_never_too_many(units: list[int], wanted: int, seed: int) -> None:
    numbered = np.unique(units, return_inverse=True)[1]
    chosen = draw_whole(numbered, wanted, wanted, np.random.default_rng(seed))
    assert chosen.sum() <= wanted
    assert not set(numbered[chosen]) & set(numbered[~chosen])
    if (np.bincount(numbered) == 1).all():
        assert chosen.sum() == min(wanted, len(units))


def slow_deduplicate(encoded: Encoded) -> list[int]:
    kept: list[int] = []
    for i in range(len(encoded)):
        same = (
            np.array_equal(encoded.features[i], encoded.features[j])
            and encoded.labels[i] == encoded.labels[j]
            for j in kept
        )
        if not any(same):
            kept.append(i)
    return kept


@given(seed=st.integers(0, 1000), n=st.integers(1, 30))
def test_duplicates_are_those_that_a_slow_comparison_finds(seed: int, n: int) -> None:
    draw = np.random.default_rng(seed)
    features = draw.choice([0.0, -0.0, 1.0], size=(n, 2)).astype(np.float32)
    labels = draw.integers(2, size=n)
    encoded = Encoded(features, labels, None, np.arange(n).astype(object), ("a", "b"), ("0", "1"), (), {})
    kept = deduplicate(encoded)
    expected = slow_deduplicate(encoded)
    assert kept.person is not None and kept.person.tolist() == expected
    assert len(kept.owner_notices) == (len(expected) < n)


def test_a_messy_file_end_to_end(write: Write) -> None:
    draw = np.random.default_rng(0)
    lines = ["\ufeffid; age ;income;sex;joined;flag;ward;y"]
    for i in range(400):
        age = "" if i % 7 == 0 else f" {draw.integers(20, 80)} "
        cells = [f"k{i}", age, f"{draw.integers(1, 9)}.{draw.integers(100, 999)},50"]
        cells += [str(draw.choice([" f", "m ", "?"])), f"2019-0{draw.integers(1, 9)}-11"]
        cells += [str(draw.choice(["true", "false"])), f"W{i % 4}", "N/A" if i % 50 == 0 else f"{i % 3}"]
        lines.append(";".join(cells))
    path = write("\n".join(lines) + "\n")
    said = DataSettings(path=path, label="y", party="ward", bounds={"age": (18, 90)})
    encoded = encode(table.read(said), said, stream())
    assert encoded.feature_names == (
        "age", "age missing", "income", "sex=f", "sex=m", "joined", "flag=false", "flag=true"
    )  # fmt: skip
    assert encoded.classes == ("0", "1", "2")
    without = [name for name in encoded.owner_notices if "without 'y'" in name]
    assert len(encoded) == 400 - 20 - int(without[0].split()[0])
    assert np.isfinite(encoded.features).all() and np.abs(encoded.features).max() <= encoding.REACH
    assert set(encoded.hashes) == {Path(path).name}
