"""Scenario: one validated TOML file describes one experiment.

Read with `load`; a key that a person can get wrong is answered with one sentence that names the file, the
key, the value and the nearest valid choice. What only the data can tell (party names, columns) is checked
when the data are read, still before any work starts.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedsim.core.errors import suggestion
from fedsim.core.imports import is_reference
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.base import Positive, Settings, Share
from fedsim.core.scenario.policy import PolicySettings
from fedsim.core.scenario.protection import CentralDPSettings, DefenceSettings, DPSettings, ReleaseSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

Sector = Literal["hospital", "bank", "employer"]
Partition = Literal[
    "auto",
    "natural",
    "iid",
    "dirichlet",
    "pathological",
    "shards",
    "linear",
    "square",
    "exponential",
]


class DataSettings(Settings):
    """Which records: a named set of the catalogue, or tables of your own."""

    name: str | None = Field(None, description="a named data set: `fedsim data list`")
    path: str | dict[str, str] | None = Field(
        None,
        description="your own table: CSV (also packed), Parquet file or folder, .xlsx, .npz, .pt (a dict of "
        "tensors), a folder of PNGs, or a function of yours as 'module:callable'; or one per party, "
        "{party = file}",
    )
    folder: str | None = Field(
        None, description="where to import 'module:callable' from; default: the scenario's folder"
    )
    text: str | None = Field(
        None,
        description="your own letters, for a language model: JSON lines with 'text', and 'party', 'person', "
        "'secret' where there are such",
    )
    tokens: Annotated[int, Field(ge=8, le=4096)] = Field(128, description="of text: tokens of a letter")
    merges: Annotated[int, Field(ge=0, le=50_000)] = Field(
        200, description="of text: byte pairs that the vocabulary merges"
    )
    label: str | None = Field(None, description="the column to predict")
    party: str | None = Field(None, description="the column that names the party of a record")
    person: str | None = Field(None, description="the column that names the person of a record")
    ignore: list[str] = Field([], description="columns that are neither features nor keys")
    kinds: dict[str, Literal["number", "category"]] = Field(
        {}, description="column kinds where the guess from public records would be wrong"
    )
    bounds: dict[str, tuple[float, float]] = Field(
        {},
        description="public lower and upper bound of numeric columns; values are clipped to them",
    )
    categories: dict[str, list[str]] = Field(
        {}, description="public values of categorical columns; any other value counts as unseen"
    )
    missing: list[str] = Field(
        ["", "?", "NA", "N/A", "NaN", "nan", "null", "None"],
        description="spellings of a missing value",
    )
    decimal: Literal[".", ","] | None = Field(
        None, description="the decimal mark of the numbers; default: as the columns show"
    )
    thousands: Literal["", ",", ".", "'", " "] | None = Field(
        None, description="the mark between groups of three digits, '' for none; default: as the columns show"
    )
    dates: Literal["day-first", "month-first"] | None = Field(
        None, description="whether 3/4/2021 is in April or in March; default: as the columns show"
    )
    encoding: str | None = Field(
        None, description="encoding of text tables, such as 'cp1252'; default: UTF-8 or by the file's mark"
    )
    separator: str | None = Field(
        None, description="what separates the cells of a text table; default: found among , ; tab |"
    )
    shape: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="the features are an image: [channels, height, width], row by row as the columns come",
    )
    clipped: list[str] = Field([], description="numeric columns that may lie outside their bounds altogether")
    public: str | None = Field(
        None, description="a table of public records, from which undeclared bounds are taken"
    )
    public_share: Share = Field(
        0.05,
        description="share of the records set aside as public, in no party, "
        "when a column is undeclared and there is no `public` table",
    )
    max_records: Annotated[int, Field(ge=10)] | None = Field(
        None, description="keep a random subset of this many records"
    )

    @property
    def files(self) -> list[str]:
        """What ``path`` names: one file or function, or one for each party."""
        return (
            [] if self.path is None else [self.path] if isinstance(self.path, str) else [*self.path.values()]
        )

    @field_validator("bounds")
    @classmethod
    def _bounds_in_order(cls, bounds: dict[str, tuple[float, float]]) -> dict:
        for column, (low, high) in bounds.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"the bounds of '{column}' are [{low}, {high}]; "
                    "they must be two finite numbers, the lower one first"
                )
        return bounds

    @field_validator("path")
    @classmethod
    def _path_names_something(cls, path: str | dict[str, str] | None) -> str | dict[str, str] | None:
        if path is None:
            return None
        files = [path] if isinstance(path, str) else list(path.values())
        if not files or not all(file.strip() for file in files):
            raise ValueError("it names no file; name a table, or one for each party")
        if any("\0" in file for file in files):
            raise ValueError("a path cannot hold a zero byte")
        return path

    @field_validator("shape")
    @classmethod
    def _shape_of_an_image(cls, shape: list[int] | None) -> list[int] | None:
        if shape is not None and len(shape) != 3:
            raise ValueError("it must be three whole numbers, [channels, height, width]")
        return shape

    @model_validator(mode="after")
    def _marks_differ(self) -> DataSettings:
        if self.decimal is not None and self.decimal == self.thousands:
            raise ValueError(f"'decimal' and 'thousands' are both '{self.decimal}'; they must differ")
        return self

    @model_validator(mode="after")
    def _own_table_needs_a_label(self) -> DataSettings:
        sources = [key for key in ("name", "path", "text") if getattr(self, key) is not None]
        if len(sources) > 1:
            raise ValueError(f"both '{sources[0]}' and '{sources[1]}' are set; keep one of them")
        if self.path == {}:
            raise ValueError("'path' names no file; give it one per party, {north = 'north.csv', …}")
        if self.path is not None and self.label is None:
            raise ValueError("'path' needs 'label', the column to predict")
        return self


class PartySettings(Settings):
    """Who takes part and how the records are dealt to them."""

    sector: Sector = Field("hospital", description="what the parties are: decides the defaults")
    count: Annotated[int, Field(ge=2)] | None = Field(
        None, description="number of parties; default 5, or as many as the data name"
    )
    partition: Partition = Field(
        "auto", description="'natural' follows the party column; 'auto' does so where there is one"
    )
    alpha: Positive = Field(0.5, description="concentration of the Dirichlet partition")
    classes: Annotated[int, Field(ge=1)] = Field(
        2,
        description="classes per party of the pathological partition, shards per party of 'shards'",
    )
    member_share: Share = Field(
        0.5,
        description="share of a party's records that it trains on, or of its persons where there are such; "
        "the others are held out",
    )


STRATEGIES = (
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedmedian",
    "fedtrimmedavg", "krum", "multikrum", "bulyan", "qfedavg",
)  # fmt: skip


class FederationSettings(Settings):
    """Rounds and aggregation."""

    rounds: Annotated[int, Field(ge=1)] = Field(20, description="number of rounds T")
    strategy: str = Field(
        "fedavg",
        description=f"one of {', '.join(STRATEGIES)}, or your own as 'module:callable'",
    )
    folder: str | None = Field(
        None, description="where to import 'module:callable' from; default: the scenario's folder"
    )
    options: dict[str, float | int] = Field(
        {}, description="the strategy's own options, e.g. {proximal_mu = 0.1}"
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the parties that train in a round"
    )
    min_parties: Annotated[int, Field(ge=1)] = Field(
        1, description="a round with fewer usable replies ends the run"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="early stopping: rounds without a lower loss on `stop_on`, before training ends; the "
        "model of the lowest is released. Default: all rounds are made",
    )
    stop_on: Literal["held-out", "public"] = Field(
        "held-out",
        description="records that `patience` looks at: the parties' held-out ones, or public ones",
    )
    timeout: Positive = Field(3600.0, description="seconds to wait for a party's reply")
    central_dp: CentralDPSettings | None = Field(
        None, description="Flower's central DP around the strategy; default: none"
    )

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES and not is_reference(name):
            raise ValueError(f"unknown strategy{suggestion(name, STRATEGIES)} (or 'module:callable')")
        return name

    def participants(self, parties: int) -> int:
        """Number of the ``parties`` that train in one round: the nearest to the fraction, at least 1."""
        return max(1, math.floor(parties * self.fraction + 0.5))


class Scenario(Settings):
    """One experiment: data, parties, model, federation, training, DP per party, adversary, seed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "scenario", description="names the run's folder"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="one seed, one result, bit for bit")
    games: Annotated[int, Field(ge=1)] = Field(
        1, description="draws of the membership, each with a federation of its own"
    )
    device: str = Field("cpu", description="torch device, e.g. 'cpu' or 'cuda'")
    data: DataSettings = DataSettings()
    parties: PartySettings = PartySettings()
    model: ModelSettings = ModelSettings()
    federation: FederationSettings = FederationSettings()
    training: TrainingSettings = TrainingSettings()
    dp: dict[str, DPSettings | Literal["off"]] = Field(
        {}, description="DP-SGD by party name; 'all' holds for every party without its own entry"
    )
    defences: dict[str, DefenceSettings | Literal["off"]] = Field(
        {}, description="other defences by party name; 'all' holds for every party without its own entry"
    )
    release: ReleaseSettings = ReleaseSettings()
    adversary: AdversarySettings = AdversarySettings()
    policy: PolicySettings | None = Field(None, description="what a run must show to pass; default: nothing")

    @field_validator("release", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        """Take ``release = "student"`` for its kind."""
        return {"kind": value} if isinstance(value, str) else value

    def defence_of(self, party: str) -> DefenceSettings | None:
        """Return what the party does beside DP-SGD, or None where that is nothing."""
        settings = self.defences.get(party, self.defences.get("all", "off"))
        return None if isinstance(settings, str) else settings

    def training_of(self, party: str) -> TrainingSettings:
        """Return how the party trains: as all with or without DP-SGD, but for what its defence replaces."""
        defence = self.defence_of(party)
        training = self.training if self.dp_of(party) is None else self.training.under_dp()
        return training if defence is None else defence.applied_to(training)

    def dp_of(self, party: str) -> DPSettings | None:
        """Return the party's DP-SGD settings, or None where it is off."""
        settings = self.dp.get(party, self.dp.get("all", "off"))
        if isinstance(settings, str):
            return None
        norm = settings.clipping_norm or self.training.private.clipping_norm
        return settings.model_copy(update={"clipping_norm": norm})
