"""Text: from letters to token ids, by a vocabulary that public letters alone decide.

A letter becomes T ids (float32, as any record's features): `BEGIN`, its byte pairs (Sennrich et al. 2016,
digits never merged), and padding, which is the last id. What the vocabulary cannot spell is `UNKNOWN`; what
is longer than T is cut off. Both are counted and said. `fedsim.core.models.language` reads the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fedsim.core.data import contents
from fedsim.core.data.encode import Encoded
from fedsim.core.data.public import draw_whole, persons, subset, units
from fedsim.core.data.records import Records
from fedsim.core.data.schema import Column, Schema
from fedsim.core.data.table import Table, sha256
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import cannot_read, read_json, write_text
from fedsim.core.scenario.settings import DataSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGIN, UNKNOWN = 0, 1
SPECIAL = ("[BEGIN]", "[UNKNOWN]")
PADDING = "[PADDING]"
CLASSES = ("this letter", "another")
"""The two classes of a language model's likelihood; every letter is of the first."""

FILE = "tokenizer.json"
FEWEST = 20
"""Public letters below which no vocabulary is learnt."""


@dataclass(frozen=True)
class Vocabulary:
    """Byte pairs and their ids.

    document: the tokenizer as JSON, in the format of the library `tokenizers`
    """

    document: str

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.document)

    @property
    def size(self) -> int:
        """V, padding included."""
        return self._tokenizer.get_vocab_size() + 1

    @property
    def padding(self) -> int:
        """The id of padding, the last one."""
        return self.size - 1

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, without beginning and padding."""
        return list(self._tokenizer.encode(text).ids)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Return (n, length) float32 ids, each letter begun, cut off or padded."""
        ids = np.full((len(texts), length), self.padding, dtype=np.float32)
        ids[:, 0] = BEGIN
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            part = encoding.ids[: length - 1]
            ids[row, 1 : 1 + len(part)] = part
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of ids (T,), without beginning and padding; '�' for what could not be spelt."""
        kept = [int(i) for i in ids if int(i) not in (BEGIN, self.padding)]
        parts: list[str] = []
        known: list[int] = []
        for i in kept:
            if i == UNKNOWN:
                parts += [self._tokenizer.decode(known), "�"]
                known = []
            else:
                known.append(i)
        return "".join([*parts, self._tokenizer.decode(known)])

    def write(self, folder: Path) -> None:
        """Write `FILE` into a run's folder."""
        write_text(folder / FILE, self.document)


def read_document(folder: Path) -> str:
    """Return what `Vocabulary.write` wrote into a folder, '' where that is nothing."""
    path = folder / FILE
    return path.read_text(encoding="utf-8") if path.exists() else ""


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read what `Vocabulary.write` wrote.

    Raises:
        InputError: the run is not of text, or the file is corrupt.
    """
    path = folder / FILE
    if not path.exists():
        raise InputError(f"{folder} is no run on text: it has no {FILE}")
    read_json(path)  # one sentence where it is none
    vocabulary = Vocabulary(path.read_text(encoding="utf-8"))
    try:
        _ = vocabulary.size
    except Exception as error:
        raise cannot_read(path, error) from error
    return vocabulary


def learn(texts: Sequence[str], merges: int) -> Vocabulary:
    """Return the vocabulary of public texts: their bytes, and this many merged pairs; digits stay apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    digits = "0123456789"  # spelt whether or not a public letter holds them
    alphabet = len({byte for text in (*texts, digits) for byte in text.encode()})
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + alphabet + merges,
        special_tokens=list(SPECIAL),
        initial_alphabet=list(digits),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer.to_str())


def read(settings: DataSettings) -> Table:
    """Return the letters of `data.text`: JSON lines or a table: text, party, person, secret, public.

    Raises:
        InputError: the file cannot be read, or has no such column.
    """
    path = Path(settings.text or "")
    frame = _read_file(path)
    named = {key: getattr(settings, key) for key in ("party", "person")}
    for key, name in named.items():
        if name is not None and name not in frame:
            raise InputError(
                f"{path}: data.{key} = '{name}': no such column{suggestion(name, map(str, frame))}"
            )
    party, person = (name or (key if key in frame else None) for key, name in named.items())
    if "text" not in frame:
        raise InputError(f"{path} has no column 'text'{suggestion('text', map(str, frame))}")
    secret = "secret" if "secret" in frame else None
    if "public" not in frame:
        frame = frame.assign(public=False)
    said = pd.Series([str(cell).lower() for cell in frame["public"]], index=frame.index)
    if not said.isin([*_YES, *_NO]).all():
        raise InputError(f"{path}: column 'public' holds something else than true and false")
    frame = frame.assign(public=said.isin(_YES))
    schema = Schema((Column("text", "text"),), "", (), party, person, secret=secret)
    return Table(frame, schema, path.name, {path.name: sha256(path)})


_YES = ("true", "1", "1.0")
_NO = ("false", "0", "0.0", "nan", "none", "")
"""How pandas writes what JSON and CSV say of a letter that is public or is not."""


def _read_file(path: Path) -> pd.DataFrame:
    contents.check_path(path)
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return pd.read_json(path, lines=True, dtype=False)
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        raise cannot_read(path, error) from error


def encode(table: Table, settings: DataSettings, generator: np.random.Generator) -> Encoded:
    """Encode letters by a vocabulary learnt from public ones.

    Public are the letters that say so, those of `data.public`, or else a share that is set aside, whole
    persons. A private letter of no party is dropped.

    generator: draws the letters set aside, and the subset of ``max_records``

    Raises:
        InputError: there are too few public letters; a letter is empty; a secret is not in its letter.
    """
    schema = table.schema
    private, public, notices, hashes = _public(table, settings, generator)
    private, lost = _of_parties(private, schema)
    private, drawn = subset(private, schema, settings.max_records, generator)
    texts = _texts(private, table.name)
    vocabulary = learn(public, settings.merges)
    length = settings.tokens
    ids = vocabulary.encode(texts, length)
    lengths = np.array([len(vocabulary.tokens(text)) for text in texts])
    secrets = _secrets(private, schema, texts, table.name)
    return Encoded(
        features=ids,
        labels=np.zeros(len(ids), dtype=np.int64),
        party=None if schema.party is None else private[schema.party].astype(str).to_numpy(object),
        person=None if schema.person is None else persons(private[schema.person]),
        feature_names=tuple(f"token {place}" for place in range(length)),
        classes=CLASSES,
        notices=(*table.notices, *notices, *drawn),
        hashes={**table.source_hashes, **hashes},
        name=table.name,
        public=Records(vocabulary.encode(public, length), np.zeros(len(public), dtype=np.int64)),
        owner_notices=(*lost, *_losses(ids, lengths, length)),
        flow=(("in the table", len(table)), ("private letters", len(ids))),
        label="likelihood",
        schema=replace(schema, columns=_token_columns(length, vocabulary), classes=CLASSES),
        vocabulary=vocabulary.document,
        secret=secrets,
    )


def _token_columns(length: int, vocabulary: Vocabulary) -> tuple[Column, ...]:
    ends = (0.0, float(vocabulary.padding))
    return tuple(Column(f"token {place}", "number", ends) for place in range(length))


def _public(
    table: Table, settings: DataSettings, generator: np.random.Generator
) -> tuple[pd.DataFrame, list[str], list[str], dict[str, str]]:
    """Return the private letters, the public texts, notices, and the hash of a public file."""
    frame, schema = table.frame, table.schema
    said = frame["public"].to_numpy(dtype=bool)
    hashes: dict[str, str] = {}
    if settings.public is not None:
        path = Path(settings.public)
        public, where = _read_file(path), f"of {path.name}"
        if "text" not in public:
            raise InputError(f"data.public: {path} has no column 'text'")
        both = len(set(public["text"]) & set(frame["text"][~said]))
        if both:
            raise InputError(f"data.public: {both} letter(s) of {path} are private ones as well; remove them")
        hashes[f"public/{path.name}"] = sha256(path)
    elif said.any():
        public, where = frame[said], f"of {table.name}"
    else:
        most = len(frame) // 5
        wanted = min(max(FEWEST, round(settings.public_share * len(frame))), most)
        said = draw_whole(units(frame, schema), wanted, most, generator)
        public, where = frame[said], "set aside; name others in data.public to keep them"
    if len(public) < FEWEST:
        raise InputError(
            f"{table.name}: {len(public)} public letters are too few to learn a vocabulary from; name a file "
            f"of {FEWEST} or more in data.public"
        )
    notice = f"the vocabulary and, where asked for, w_0 are learnt from {len(public)} public letters {where}"
    private = frame[~said].reset_index(drop=True)
    return private, _texts(public, "public letters"), [notice], hashes


def _of_parties(frame: pd.DataFrame, schema: Schema) -> tuple[pd.DataFrame, list[str]]:
    """Return the letters that belong to a party, and what is to be said of the others."""
    if schema.party is None or not frame[schema.party].isna().any():
        return frame, []
    there = frame[frame[schema.party].notna()].reset_index(drop=True)
    return there, [f"{len(frame) - len(there)} letters without a '{schema.party}' were dropped"]


def _texts(frame: pd.DataFrame, source: str) -> list[str]:
    empty = frame["text"].isna() | (frame["text"].astype(str).str.strip() == "")
    if empty.any():
        raise InputError(f"{source}: letter {int(np.flatnonzero(empty)[0]) + 1} is empty; remove it")
    return frame["text"].astype(str).tolist()


def _secrets(frame: pd.DataFrame, schema: Schema, texts: Sequence[str], source: str) -> np.ndarray | None:
    if schema.secret is None:
        return None
    secrets = frame[schema.secret].fillna("").astype(str).to_numpy(object)
    for row, (secret, text) in enumerate(zip(secrets, texts, strict=True)):
        if secret and secret not in text:
            raise InputError(f"{source}: the secret of letter {row + 1} is not in its text")
        if secret and not secret.isdecimal():
            raise InputError(f"{source}: the secret of letter {row + 1} is no number; exposure counts digits")
    return secrets


def _losses(ids: np.ndarray, lengths: np.ndarray, length: int) -> tuple[str, ...]:
    """Say, to the owner of the letters alone, what encoding lost of them."""
    cut, unknown = int((lengths > length - 1).sum()), int((ids == UNKNOWN).any(1).sum())
    notices = []
    if cut:
        notices.append(
            f"{cut} of {len(ids)} letters are longer than data.tokens = {length} and were cut off; the "
            f"longest has {int(lengths.max()) + 1}"
        )
    if unknown:
        notices.append(f"{unknown} of {len(ids)} letters hold characters that no public letter has")
    return tuple(notices)
