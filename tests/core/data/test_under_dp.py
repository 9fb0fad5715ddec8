"""What leaves the tables under DP: nothing that one private record decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.tables import encoded, said
from support.toys import make_encoded

from fedsim.core import rng
from fedsim.core.data import table
from fedsim.core.data.encode import Encoded, deduplicate, encode, under_dp
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

Write = Callable[..., str]


def rows(n: int = 120) -> list[list[str]]:
    draw = np.random.default_rng(0)
    return [
        [
            f"{draw.normal(50, 10):.1f}",
            str(draw.choice(["u", "v"])),
            f"s{k % 3}",
            str(draw.choice(["n", "p"])),
        ]
        for k in range(n)
    ]


def text(records: list[list[str]]) -> str:
    return (
        "\n".join(",".join(f'"{cell}"' for cell in record) for record in [["a", "b", "site", "y"], *records])
        + "\n"
    )


def private_rows(n: int = 120) -> np.ndarray:
    """The rows that are not set aside."""
    aside = rng.generator(0, "public records").permutation(n)[:20]
    return np.setdiff1d(np.arange(n), aside)


def test_a_class_that_one_private_record_has_is_no_class_under_dp(write: Write) -> None:
    changed = rows()
    changed[private_rows()[5]][3] = "zebra"
    before = under_dp(encoded(write(text(rows())), party="site"))
    after_raw = encoded(write(text(changed)), party="site")
    after = under_dp(after_raw)
    assert after_raw.classes == ("n", "p", "zebra") and "with one record: 'zebra'" in said(after_raw)
    assert after.classes == before.classes == ("n", "p")
    assert after.notices == before.notices and after.feature_names == before.feature_names
    assert len(after) == len(before) - 1
    assert "1 record(s) of classes that no public record has were dropped" in after.owner_notices[-1]
    assert "zebra" not in " ".join(after.notices)


def test_classes_that_only_private_records_tell_refuse_dp(write: Write) -> None:
    declared = {"bounds": {"a": [0, 100]}, "categories": {"b": ["u", "v"]}}
    records = encoded(write(text(rows())), party="site", **declared)
    with pytest.raises(InputError, match=r"must be public.*set data\.categories\.y, such as \['n', 'p'\]"):
        under_dp(records)
    declared["categories"]["y"] = ["p", "n"]
    again = encoded(write(text(rows())), party="site", **declared)
    assert under_dp(again) is again and again.classes == ("p", "n")


def test_a_declared_class_is_one_and_others_are_dropped_and_counted(write: Write) -> None:
    changed = rows()
    changed[private_rows()[5]][3] = "zebra"
    records = encoded(write(text(changed)), party="site", categories={"y": ["n", "p"]})
    assert records.classes == ("n", "p")
    assert any("1 record(s) without 'y' of a known class were dropped" in x for x in records.owner_notices)


def test_a_spelling_that_only_private_records_tell_refuses_dp(write: Write) -> None:
    body = "".join(f"{k},5;{'np'[k % 2]}\n" for k in range(40))
    declared = {"bounds": {"a": [0, 100]}, "categories": {"y": ["n", "p"]}}
    records = encoded(write("a;y\n" + body), **declared)
    assert records.features[3, 0] == pytest.approx(3.5 / 100 * 4 - 2)
    with pytest.raises(InputError, match=r"under DP, how 'a' is written .* set data.decimal = ','"):
        under_dp(records)
    under_dp(encoded(write("a;y\n" + body), decimal=",", **declared))


@hypothesis_settings(max_examples=20)
@given(
    place=st.integers(0, 99),
    cells=st.tuples(
        st.sampled_from(["1e9", "-3", "x", "", "1.234,5", "01.02.2020", "#DIV/0!"]),
        st.sampled_from(["u", "new", "", "U", "7"]),
        st.sampled_from(["n", "p", "zebra", "", "P"]),
    ),
)
def test_one_changed_private_record_changes_its_own_features_alone(
    tmp_path_factory: pytest.TempPathFactory, place: int, cells: tuple[str, str, str]
) -> None:
    folder = tmp_path_factory.mktemp("t")
    changed = rows()
    record = changed[private_rows()[place]]
    record[0], record[1], record[3] = cells
    both = []
    for k, records in enumerate((rows(), changed)):
        path = folder / f"{k}.csv"
        path.write_text(text(records))
        settings = DataSettings(path=str(path), label="y", party="site")
        both.append(under_dp(encode(table.read(settings), settings, rng.generator(0, "public records"))))
    before, after = both
    for name in ("feature_names", "classes", "public_classes", "from_private"):
        assert getattr(before, name) == getattr(after, name), name
    assert [n.replace("1.csv", "0.csv") for n in after.notices] == list(before.notices)
    assert before.public is not None and after.public is not None
    np.testing.assert_array_equal(before.public.features, after.public.features)
    others = np.delete(before.features, place, axis=0)
    left = after.features if len(after) < len(before) else np.delete(after.features, place, axis=0)
    np.testing.assert_array_equal(others, left)


def twins(seed: int = 0) -> Encoded:
    draw = np.random.default_rng(seed)
    records = make_encoded(40, parties=3)
    features = draw.choice([0.0, 1.0], size=(40, 2)).astype(np.float32)
    return replace(records, features=features)


@given(seed=st.integers(0, 200))
def test_under_dp_a_party_loses_no_record_to_another_one(seed: int) -> None:
    records = twins(seed)
    left = deduplicate(records, within_parties=True)
    assert records.party is not None and left.party is not None
    for name in set(records.party):
        alone = deduplicate(records.take(np.flatnonzero(records.party == name)))
        np.testing.assert_array_equal(alone.features, left.features[left.party == name])
        np.testing.assert_array_equal(alone.labels, left.labels[left.party == name])
