from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.toys import make_encoded

from fedsim.core.data.encode import Encoded
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.evaluation.truth import Game, draw_game, draw_members


def split(n: int, count: int) -> dict[str, np.ndarray]:
    return {f"h-{k}": np.arange(k, n, count) for k in range(count)}


def draw(encoded: Encoded, rows: dict[str, np.ndarray], **more: Any) -> Game:
    keys = [key for key in more if key in AdversarySettings.model_fields]
    settings = AdversarySettings(**{key: more.pop(key) for key in keys})
    options: dict[str, Any] = {"seed": 0, "game": 0, "member_share": 0.5, "adversary": "h-0"}
    return draw_game(encoded, rows, settings=settings, **{**options, **more})


def rows_of(records: Any) -> list[int]:
    return records.features[:, 0].astype(int).tolist()


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    n=st.integers(60, 120),
    count=st.integers(2, 5),
    share=st.sampled_from([0.25, 0.5, 0.8]),
    game=st.integers(0, 5),
    persons=st.sampled_from([None, 40]),
    most=st.sampled_from([None, 2, 7, 30, 1000]),
)
def test_the_game(n: int, count: int, share: float, game: int, persons: int | None, most: int | None) -> None:
    encoded, rows = make_encoded(n, persons=persons), split(n, count)
    try:
        drawn = draw(encoded, rows, member_share=share, game=game, candidates=most)
    except InputError:
        assume(False)
    trained: set[int] = set()
    held: set[int] = set()
    for name, party in drawn.parties.items():
        mine, others = set(rows_of(party.train)), set(rows_of(party.heldout))
        assert mine | others == set(rows[name]) and not mine & others
        if persons is None:
            assert len(mine) == round(share * len(rows[name]))
        trained, held = trained | mine, held | others
    if encoded.person is not None:
        assert not set(encoded.person[sorted(trained)]) & set(encoded.person[sorted(held)])
    truth = drawn.truth
    assert list(truth) == ["candidate", "record", "party", "member", "label"]
    assert truth["candidate"].tolist() == list(range(len(truth)))
    assert rows_of(drawn.candidates.records) == truth["record"].tolist()
    assert drawn.candidates.records.labels.tolist() == truth["label"].tolist()
    assert [record in trained for record in truth["record"]] == truth["member"].tolist()
    assert all(record in rows[party] for record, party in zip(truth["record"], truth["party"], strict=True))
    asked_of = np.concatenate([rows[name] for name in rows if name != "h-0"])
    victims = len(asked_of)
    if encoded.person is not None:  # one record of each: a person's records are no independent evidence
        victims = len(set(encoded.person[asked_of]))
        assert len(set(encoded.person[truth["record"]])) == len(truth)
    assert len(truth) == min(most or n, victims) and "h-0" not in set(truth["party"])
    assert truth["record"].is_unique
    if most == 7:
        assert truth["member"].sum() in (3, 4)


def test_one_seed_one_game_and_another_game_another_membership() -> None:
    encoded, rows = make_encoded(200), split(200, 4)
    one, two = draw(encoded, rows), draw(encoded, rows)
    assert one.truth.equals(two.truth)
    members = [draw_members(encoded, rows, seed=0, game=game, share=0.5) for game in range(200)]
    assert not np.array_equal(members[0], members[1])
    assert not np.array_equal(members[0], draw_members(encoded, rows, seed=1, game=0, share=0.5))
    # Over games every record is a member about half of the time: six standard errors of 200 fair coins.
    assert np.abs(np.mean(members, axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(200)


def test_the_share_is_met_to_the_person() -> None:
    encoded, rows = make_encoded(400, persons=60), {"a": np.arange(400)}
    person = np.asarray(encoded.person, str)
    for game in range(20):
        member = draw_members(encoded, rows, seed=0, game=game, share=0.3)
        assert len(set(person[member])) == round(0.3 * len(set(person)))


def test_how_many_records_a_person_has_does_not_tell_her_side() -> None:
    """AUC of the number of records, mean over games, within four standard errors of .5.

    One in eight persons has fifteen records, the others one: a draw that went on until the records are
    enough would end within one of the former, and take her in.
    """
    sizes = np.array([15, 1, 1, 1, 1, 1, 1, 1] * 2)
    person = np.repeat(np.arange(len(sizes)), sizes)
    encoded = make_encoded(len(person), persons=len(sizes))
    encoded = dataclasses.replace(encoded, person=person)
    aucs = []
    for game in range(400):
        member = draw_members(encoded, {"a": np.arange(len(person))}, seed=0, game=game, share=0.5)
        inside = np.array([member[person == k][0] for k in range(len(sizes))])
        difference = sizes[inside][:, None] - sizes[~inside][None, :]
        aucs.append(float(np.mean((difference > 0) + 0.5 * (difference == 0))))
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / np.sqrt(len(aucs))


def test_a_person_keeps_the_side_that_an_earlier_party_drew() -> None:
    encoded, rows = make_encoded(300, persons=60), split(300, 3)
    first = {"h-0": rows["h-0"]}
    for game in range(5):
        alone = draw_members(encoded, first, seed=0, game=game, share=0.5)
        together = draw_members(encoded, rows, seed=0, game=game, share=0.5)
        np.testing.assert_array_equal(alone[rows["h-0"]], together[rows["h-0"]])


def test_candidates_are_shuffled() -> None:
    drawn = draw(make_encoded(400), split(400, 4))
    half = len(drawn.truth) // 2
    assert 0.35 < drawn.truth["member"][:half].mean() < 0.65
    assert drawn.truth["party"][:half].nunique() == 3


def test_any_record_of_a_person_may_be_the_candidate_and_the_adversary_owns_the_others() -> None:
    encoded, rows = make_encoded(60, persons=20), split(60, 2)
    games = [draw(encoded, rows, game=game) for game in range(60)]
    asked = set().union(*(game.truth["record"] for game in games))
    assert asked == set(rows["h-1"])
    for game in games:
        owned = rows_of(game.auxiliary.records) + game.truth["record"].tolist()
        assert sorted(owned) == sorted(rows["h-1"])


def test_candidates_do_not_depend_on_how_many_are_kept_of_the_other_parties_records() -> None:
    """The parties' splits are drawn apart from the candidates: a limit changes no member."""
    encoded, rows = make_encoded(200), split(200, 4)
    few, all_of_them = draw(encoded, rows, candidates=20), draw(encoded, rows)
    for name in rows:
        assert rows_of(few.parties[name].train) == rows_of(all_of_them.parties[name].train)


def test_wrong_games_get_one_sentence() -> None:
    with pytest.raises(InputError, match=r"adversary\.party = 'h-9': no such party"):
        draw(make_encoded(40), split(40, 2), adversary="h-9")
    with pytest.raises(
        InputError, match=r"toy: party 'h-0' has 0 training and 10 held-out records with parties"
    ):
        draw(make_encoded(20), split(20, 2), member_share=0.01)
    with pytest.raises(InputError, match="each side needs 2"):
        draw(make_encoded(40, persons=1), split(40, 2))


@pytest.mark.parametrize("auxiliary", ["population", "disjoint", "own"])
def test_what_the_adversary_owns_besides(auxiliary: str) -> None:
    encoded, rows = make_encoded(100), split(100, 4)
    drawn = draw(encoded, rows, auxiliary=auxiliary, candidates=20)
    owned, asked = rows_of(drawn.auxiliary.records), rows_of(drawn.candidates.records)
    assert not set(owned) & set(asked) and not set(owned) & set(rows["h-0"])
    held = {record for party in drawn.parties.values() for record in rows_of(party.heldout)}
    if auxiliary == "population":  # every record of the other parties is in its hands
        assert len(owned) == 75 - 20 and not set(owned) <= held
    elif auxiliary == "disjoint":
        assert set(owned) <= held and len(owned) == len(held - set(rows["h-0"])) // 2
    else:
        assert owned == []


def test_open_world_and_sizes() -> None:
    encoded, rows = make_encoded(100), split(100, 4)
    assert len(draw(encoded, rows, candidates=30, auxiliary_size=0).auxiliary) == 0
    assert len(draw(encoded, rows, auxiliary="disjoint", auxiliary_size=7).auxiliary) == 7
    with pytest.raises(InputError, match=r"adversary.auxiliary_size = 99: .* it can be 2 to"):
        draw(encoded, rows, auxiliary="disjoint", auxiliary_size=99)


def test_parties_of_candidates_are_told_only_where_they_are_known() -> None:
    encoded, rows = make_encoded(100), split(100, 4)
    assert set(draw(encoded, rows).candidates.party) == {-1}
    drawn = draw(encoded, rows, knows_party=True)
    names = list(rows)
    assert [names[k] for k in drawn.candidates.party] == drawn.truth["party"].tolist()
