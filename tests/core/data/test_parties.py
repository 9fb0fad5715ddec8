from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pytest
from flwr_datasets import partitioner as library
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.toys import make_encoded

from fedsim.core import rng
from fedsim.core.data.encode import Encoded
from fedsim.core.data.parties import deal, units_of
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import PartySettings

WHOLE = ["iid", "dirichlet", "linear", "square", "exponential"]
PARTITIONS = [*WHOLE, "pathological", "shards"]


def dealt_once(encoded: Encoded, rows: dict[str, np.ndarray]) -> np.ndarray:
    everything = np.concatenate(list(rows.values()))
    assert len(everything) == len(np.unique(everything))
    assert all((np.diff(mine) > 0).all() for mine in rows.values())
    assert everything.max() < len(encoded)
    return everything


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    partition=st.sampled_from(PARTITIONS),
    n=st.integers(150, 260),
    count=st.integers(2, 4),
    persons=st.sampled_from([None, 90]),
    seed=st.integers(0, 10**9),
)
def test_a_partition_is_a_partition(
    partition: str, n: int, count: int, persons: int | None, seed: int
) -> None:
    encoded = make_encoded(n, persons=persons, seed=seed % 7)
    try:
        rows = deal(encoded, PartySettings(partition=partition, count=count, alpha=5), seed)
    except InputError as error:  # uneven partitions of whole persons can leave a party too small
        assert "lower parties.count" in str(error)
        assume(False)
    assert list(rows) == [f"hospital-{number + 1}" for number in range(count)]
    everything = dealt_once(encoded, rows)
    if partition in WHOLE:
        assert len(everything) == n
    if persons is not None:
        assert encoded.person is not None
        mine = [set(encoded.person[index]) for index in rows.values()]
        assert sum(map(len, mine)) == len(set.union(*mine))


def test_natural_parties_are_those_of_the_table() -> None:
    encoded = make_encoded(40, parties=3)
    rows = deal(encoded, PartySettings(), 0)
    assert list(rows) == ["Site 0", "Site 1", "Site 2"]
    for number, mine in enumerate(rows.values()):
        np.testing.assert_array_equal(mine, np.arange(number, 40, 3))


def test_another_partition_may_ignore_the_tables_parties() -> None:
    rows = deal(make_encoded(40, parties=3), PartySettings(partition="iid", sector="bank"), 0)
    assert list(rows) == [f"bank-{number}" for number in range(1, 6)]
    assert {len(mine) for mine in rows.values()} == {8}


def test_shards_and_pathological_parties_have_few_classes() -> None:
    encoded = make_encoded(400, classes=8)
    for partition in ("pathological", "shards"):
        rows = deal(encoded, PartySettings(partition=partition, classes=2, count=4), 0)
        assert all(len(set(encoded.labels[mine])) <= 4 for mine in rows.values())
    rows = deal(encoded, PartySettings(partition="pathological", classes=2, count=4), 0)
    assert all(len(set(encoded.labels[mine])) == 2 for mine in rows.values())


def test_a_small_alpha_makes_parties_differ_more() -> None:
    encoded = make_encoded(2000)

    def spread(alpha: float) -> float:
        rows = deal(encoded, PartySettings(partition="dirichlet", alpha=alpha), 3)
        return float(np.std([encoded.labels[mine].mean() for mine in rows.values()]))

    assert spread(0.3) > 3 * spread(100)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_one_seed_one_partition(partition: str) -> None:
    encoded, settings = make_encoded(200), PartySettings(partition=partition, count=3, alpha=3)
    one, two, other = deal(encoded, settings, 1), deal(encoded, settings, 1), deal(encoded, settings, 2)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_iid_is_not_the_order_of_the_table() -> None:
    rows = deal(make_encoded(500), PartySettings(partition="iid"), 0)
    assert all(150 < mine.mean() < 350 for mine in rows.values())


@pytest.mark.parametrize(
    ("encoded", "settings", "sentence"),
    [
        (
            make_encoded(3),
            {},
            "toy: 3 records for 5 parties, and each needs at least 4; add records",
        ),
        (make_encoded(300, persons=9), {"count": 3}, "9 persons for 3 parties"),
        (make_encoded(30), {"partition": "natural"}, "toy has no party column; set data.party"),
        (make_encoded(30, parties=3), {"count": 4}, "names 3 parties, parties.count is 4"),
        (make_encoded(30, parties=1), {}, "names 1 party, parties.count is at least 2"),
        (make_encoded(11, parties=3), {}, "party 'Site 2' has 3 record"),
        (
            make_encoded(40),
            {"partition": "exponential"},
            "party 'hospital-1' has 0 record|does not fit these data",
        ),
        (make_encoded(40), {"partition": "pathological", "classes": 3}, "parties.partition = 'pathological'"),
        (make_encoded(40), {"partition": "dirichlet", "alpha": 0.001}, "parties.alpha = 0.001: no draw"),
        (make_encoded(0), {}, "no records are left"),
    ],
)
def test_what_cannot_be_dealt_gets_one_sentence(encoded: Encoded, settings: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        deal(encoded, PartySettings(**settings), 0)
    assert "\n" not in str(caught.value)


def test_dealing_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    deal(make_encoded(40, parties=3), PartySettings(), 0)
    deal(make_encoded(30), PartySettings(partition="dirichlet", alpha=0.4, count=3), 1)
    assert capfd.readouterr() == ("", "")


def test_party_names_are_kept_as_they_are_written() -> None:
    names = ["北京医院", "Больница №1", "St. Mary", "st mary", "all"]
    encoded = make_encoded(60, parties=5)
    party = np.array([names[k % 5] for k in range(60)], dtype=object)
    rows = deal(replace(encoded, party=party), PartySettings(), 0)
    assert set(rows) == {*names[:4], "all (party)"}, (
        "'all' alone stands for every party where DP is switched on"
    )
    for number, name in enumerate(names[:4]):
        np.testing.assert_array_equal(rows[name], np.arange(number, 60, 5))


def test_importing_the_module_does_not_import_the_partitioners() -> None:
    code = "import sys, fedsim.core.data.parties; print({'datasets', 'torch', 'sklearn'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_dealing_does_not_import_a_plotting_library() -> None:
    code = (
        "import sys; from fedsim.core.data.parties import _library; "
        "print(_library().IidPartitioner.__name__, 'matplotlib' in sys.modules); "
        "import flwr_datasets; from flwr_datasets.visualization import plot_label_distributions"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["IidPartitioner", "False"], "and the plots can still be imported later"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("persons", [None, 90])
@pytest.mark.parametrize("count", [2, 5, 7])
def test_iid_parties_are_those_of_flwr_datasets(count: int, persons: int | None, seed: int) -> None:
    """The line that deals them without the library, against the library."""
    encoded = make_encoded(203, persons=persons, seed=seed)
    units, first = units_of(encoded)
    partitioner = library.IidPartitioner(count)
    shuffled = rng.generator(seed, "partition").permutation(first)
    partitioner.dataset = datasets.Dataset.from_dict({"row": shuffled})
    rows = deal(encoded, PartySettings(partition="iid", count=count), seed)
    for number, mine in enumerate(rows.values()):
        part = np.array(partitioner.load_partition(number)["row"])
        assert (mine == np.flatnonzero(np.isin(units, units[part]))).all()


@pytest.mark.parametrize("parties", [2, 3, 11])
def test_natural_parties_are_those_of_flwr_datasets(parties: int) -> None:
    encoded = make_encoded(150, parties=parties, seed=parties)
    assert encoded.party is not None
    partitioner = library.NaturalIdPartitioner("party")
    order = rng.generator(5, "partition").permutation(len(encoded))
    columns = {"row": order, "party": [str(name) for name in encoded.party[order]]}
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    rows = deal(encoded, PartySettings(), 5)
    assert len(rows) == partitioner.num_partitions
    for number, mine in enumerate(rows.values()):
        assert (mine == np.sort(partitioner.load_partition(number)["row"])).all()
