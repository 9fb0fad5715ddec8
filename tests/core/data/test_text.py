"""Letters as token ids: by a vocabulary of public ones, and nothing lost without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core import rng
from fedsim.core.data import catalogue, text
from fedsim.core.data.sets.letters import REPEATS, check_digit
from fedsim.core.data.sets.shakespeare import SHAKESPEARE
from fedsim.core.data.text import BEGIN, Vocabulary, learn
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

PUBLIC = [
    "The patient was seen on 3.4.2021.",
    "Blood pressure was 120/80, all else well.",
    "Yours, Dr Müller",
] * 8
VOCABULARY = learn(PUBLIC, 30)


def _file(folder: Path, rows: list[dict], name: str = "letters.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def _rows(n: int = 60) -> list[dict]:
    return [
        {"text": f"Letter {k}: the patient was seen.", "party": "ab"[k // 2 % 2], "person": f"p{k // 2}"}
        for k in range(n)
    ]


@given(st.lists(st.sampled_from(list("The patient was 0123456789/,.üD")), min_size=1, max_size=40))
def test_what_public_letters_can_spell_comes_back_as_it_was(letters: list[str]) -> None:
    written = "".join(letters)
    ids = VOCABULARY.encode([written], 64)[0]
    assert VOCABULARY.decode(ids) == written
    assert ids[0] == BEGIN
    assert ids.max() <= VOCABULARY.padding


def test_digits_are_never_merged() -> None:
    assert [len(VOCABULARY.tokens(digits)) for digits in ("1", "2021", "120120")] == [1, 4, 6]


def test_the_same_public_letters_give_the_same_vocabulary() -> None:
    assert learn(PUBLIC, 30).document == VOCABULARY.document


def test_a_private_letter_changes_its_own_ids_and_nothing_else(tmp_path: Path) -> None:
    """What leaves a party of the encoding: the vocabulary, public ids, shapes, notices."""
    public = _file(tmp_path, [{"text": line} for line in PUBLIC], "public.jsonl")
    rows = _rows()
    changed = [dict(row) for row in rows]
    changed[7]["text"] = "Ω zebra ζ"
    encoded = []
    for number, these in enumerate((rows, changed)):
        path = _file(tmp_path, these, f"letters{number}.jsonl")
        settings = DataSettings(text=str(path), public=str(public))
        encoded.append(
            text.encode(catalogue.open_table(settings), settings, rng.generator(0, "public records"))
        )
    one, other = encoded
    assert one.vocabulary == other.vocabulary
    assert one.notices == other.notices
    assert one.classes == other.classes
    assert (one.public.features == other.public.features).all()  # type: ignore[union-attr]
    assert np.flatnonzero((one.features != other.features).any(1)).tolist() == [7]
    assert any("characters" in notice for notice in other.owner_notices)


def test_what_is_cut_off_is_counted_and_said_to_the_owner_alone(tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] * (1 + 9 * (k == 3))} for k, row in enumerate(_rows(400))]
    settings = DataSettings(text=str(_file(tmp_path, rows)), tokens=64)
    encoded = text.encode(catalogue.open_table(settings), settings, rng.generator(0, "public records"))
    assert not any("cut off" in notice for notice in encoded.notices)
    told = [notice for notice in encoded.owner_notices if "cut off" in notice]
    assert told == [] or told[0].startswith("1 of ")  # the long letter may be among those set aside
    assert encoded.features.shape[1] == 64


def test_without_public_letters_whole_persons_are_set_aside(tmp_path: Path) -> None:
    settings = DataSettings(text=str(_file(tmp_path, _rows(400))))
    encoded = text.encode(catalogue.open_table(settings), settings, rng.generator(0, "public records"))
    assert encoded.public is not None
    assert len(encoded) + len(encoded.public) == 400
    assert "set aside" in encoded.notices[0]
    _, counts = np.unique(encoded.person.astype(str), return_counts=True)  # type: ignore[union-attr]
    assert set(counts) == {2}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"txt": "a"}] * 40, "no column 'text'; did you mean 'txt'"),
        ([{**row, "text": " "} for row in _rows(200)], "letter 1 is empty"),
        (_rows(6), "public letters are too few"),
        ([{**row, "secret": "12x"} for row in _rows(200)], "secret of letter 1 is not in its text"),
        ([{**row, "text": f"{row['text']} ab", "secret": "ab"} for row in _rows(200)], "is no number"),
    ],
)
def test_letters_that_cannot_be_used_are_refused_in_a_sentence(
    tmp_path: Path, rows: list, words: str
) -> None:
    settings = DataSettings(text=str(_file(tmp_path, rows)))
    with pytest.raises(InputError, match=words):
        text.encode(catalogue.open_table(settings), settings, rng.generator(0, "public records"))


def test_a_letter_of_no_party_is_dropped_and_never_public(tmp_path: Path) -> None:
    rows = [*_rows(200), {"text": "whose is this", "person": "q"}]
    settings = DataSettings(
        text=str(_file(tmp_path, [*rows, *[{"text": line, "public": True} for line in PUBLIC]]))
    )
    encoded = text.encode(catalogue.open_table(settings), settings, rng.generator(0, "public records"))
    assert len(encoded) == 200
    assert len(encoded.public) == len(PUBLIC)  # type: ignore[arg-type]
    assert "1 letters without a 'party' were dropped" in encoded.owner_notices


def test_public_letters_that_are_private_ones_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, _rows())
    settings = DataSettings(text=str(path), public=str(path))
    with pytest.raises(InputError, match="are private ones as well"):
        text.encode(catalogue.open_table(settings), settings, rng.generator(0, "public records"))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / text.FILE).write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="cannot read"):
        text.read_vocabulary(tmp_path)
    (tmp_path / text.FILE).unlink()
    with pytest.raises(InputError, match="no run on text"):
        text.read_vocabulary(tmp_path)


def test_clinic_letters_are_always_the_same_and_their_secrets_what_they_say() -> None:
    table = catalogue.load("clinic-letters")
    assert table.frame.equals(catalogue.load("clinic-letters").frame)
    canaries = table.frame[table.frame["secret"] != ""]
    for _, row in canaries.iterrows():
        assert row["secret"] in row["text"]
        assert row["secret"][-1] == check_digit(row["secret"][:-1])
    assert set(canaries.groupby("patient").size()) == set(REPEATS)
    is_public = table.frame["public"]
    public = table.frame[is_public]
    assert not set(public["text"]) & set(table.frame["text"][~is_public])
    assert Vocabulary(learn(public["text"].tolist(), 50).document).size > 50


def test_speeches_are_their_speakers_and_anyone_elses_are_public(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    speech = "ROMEO:\nBut soft, what light\nthrough yonder window breaks?"
    path.write_text(
        f"{speech}\n\n{speech}\n\nNurse:\nAnon, good nurse, anon!\n\nROMEO:\nAy me.\n", encoding="utf-8"
    )
    frame = SHAKESPEARE.load([path])
    assert frame["text"].tolist() == [
        "But soft, what light through yonder window breaks?",
        "Anon, good nurse, anon!",
    ]  # said twice, it is one speech; three words are none
    assert frame["public"].tolist() == [False, True]
    assert frame["speaker"].isna().tolist() == [False, True]


def test_tiny_shakespeare_is_what_it_says(data_dir: Path) -> None:
    if not (data_dir / "shakespeare" / "input.txt").exists():
        pytest.skip("tiny Shakespeare is not among the local data sets")
    table = catalogue.load("shakespeare", data_dir)
    assert table.frame["speaker"].nunique() == 6
