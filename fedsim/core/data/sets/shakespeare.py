"""`shakespeare`: speeches from the plays, their speakers as parties; no secrets, a plain example of text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedsim.core.data.schema import Column, Schema
from fedsim.core.data.sources import DataSet, File

SPEAKERS = ("GLOUCESTER", "DUKE VINCENTIO", "MENENIUS", "ROMEO", "PETRUCHIO", "CORIOLANUS")
"""Who speaks most often, but for numbered citizens and servants; each is a party."""

FEWEST, PUBLIC = 12, 600
"""Characters of the shortest speech that counts; speeches of anyone else that are public."""


def _load(paths: list[Path]) -> pd.DataFrame:
    """Return the speeches: text, speaker (missing: public), public."""
    rows = []
    for block in paths[0].read_text(encoding="utf-8").split("\n\n"):
        speaker, _, speech = block.partition(":\n")
        text = " ".join(speech.split())
        if len(text) >= FEWEST:
            rows.append((text, speaker.strip().upper()))
    frame = pd.DataFrame(rows, columns=["text", "speaker"]).drop_duplicates("text")
    spoken = frame["speaker"].isin(SPEAKERS)
    others = frame[~spoken].iloc[:: max(1, int((~spoken).sum()) // PUBLIC)].head(PUBLIC)
    whole = pd.concat([frame[spoken], others.assign(speaker=None)], ignore_index=True)
    return whole.assign(public=whole["speaker"].isna())


SHAKESPEARE = DataSet(
    name="shakespeare",
    title="Speeches from Shakespeare's plays (tiny Shakespeare)",
    sectors=("employer",),
    record="speech",
    rows=1589,
    licence="public domain",
    origin="https://github.com/karpathy/char-rnn",
    folder="shakespeare",
    files=(
        File(
            "input.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
    schema=Schema((Column("text", "text"),), label="", classes=(), party="speaker"),
    load=_load,
    notes="text, for the models 'gpt' and 'lstm'; six speakers, and 600 speeches of others as public ones",
)
