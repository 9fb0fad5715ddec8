"""Scenario: one validated TOML file describes one experiment.

Read with `load`; a key that a person can get wrong is answered with one sentence that names the file, the
key, the value and the nearest valid choice. What only the data can tell (party names, columns) is checked
when the data are read, still before any work starts.
"""

from __future__ import annotations

import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsim.errors import InputError, suggestion
from fedsim.files import cannot_read, write_text

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
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all sections: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Settings):
    """Which records: a named set of the catalogue, or tables of your own."""

    name: str | None = Field(None, description="a named data set: `fedsim data list`")
    path: str | dict[str, str] | None = Field(
        None, description="your own CSV or Parquet file; or one file per party, {party = file}"
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

    @model_validator(mode="after")
    def _own_table_needs_a_label(self) -> DataSettings:
        if self.name is not None and self.path is not None:
            raise ValueError("both 'name' and 'path' are set; keep one of them")
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
        0.5, description="share of a party's records that it trains on; the others are held out"
    )


class ModelSettings(Settings):
    """The torch model that the parties train together."""

    name: str = Field("mlp", description="'logistic', 'mlp', 'cnn', or your own factory as 'module:callable'")
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        [64, 64], description="widths of the MLP's hidden layers; channels of the CNN"
    )
    folder: str | None = Field(
        None, description="where to import 'module:callable' from; default: the scenario's folder"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        choices = ("logistic", "mlp", "cnn")
        if name not in choices and not re.fullmatch(r"[\w.]+:\w+", name):
            raise ValueError(f"unknown model{suggestion(name, choices)} (or 'module:callable')")
        return name


STRATEGIES = (
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedmedian",
    "fedtrimmedavg", "krum", "multikrum", "bulyan", "qfedavg",
)  # fmt: skip


class CentralDPSettings(Settings):
    """Flower's central DP: the unit is a whole party, and the server, which adds the noise, is trusted.

    It hides nothing of a record from a participant, who receives the aggregate, beyond what its noise hides.
    """

    where: Literal["server", "client"] = Field(
        "server", description="who clips the updates: the server, or each party before it answers"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        "fixed", description="whether the norm is given, or follows a quantile of the updates' norms"
    )
    noise_multiplier: Positive = Field(
        1.0, description="σ of the noise on the sum of the updates, over the norm"
    )
    clipping_norm: Positive = Field(1.0, description="bound on a party's update, or where adaptive starts")
    clipping_quantile: Share = Field(0.5, description="quantile that adaptive clipping aims at")
    clipping_rate: Positive = Field(0.2, description="learning rate of adaptive clipping")
    delta: Share = Field(1e-5, description="δ at which the parties' ε is reported")


class FederationSettings(Settings):
    """Rounds and aggregation."""

    rounds: Annotated[int, Field(ge=1)] = Field(40, description="number of rounds T")
    strategy: str = Field("fedavg", description=f"one of {', '.join(STRATEGIES)}")
    options: dict[str, float | int] = Field(
        {}, description="the strategy's own options, e.g. {proximal_mu = 0.1}"
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the parties that train in a round"
    )
    min_parties: Annotated[int, Field(ge=1)] = Field(
        1, description="a round with fewer usable replies ends the run"
    )
    timeout: Positive = Field(3600.0, description="seconds to wait for a party's reply")
    central_dp: CentralDPSettings | None = Field(
        None, description="Flower's central DP around the strategy; default: none"
    )

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES:
            raise ValueError(f"unknown strategy{suggestion(name, STRATEGIES)}")
        return name

    def participants(self, parties: int) -> int:
        """Number of the ``parties`` that train in one round: the nearest to the fraction, at least 1."""
        return max(1, math.floor(parties * self.fraction + 0.5))


class TrainingSettings(Settings):
    """A party's local training in one round."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = Field(0.1, description="learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="SGD momentum")
    l2: NonNegative = Field(0.0, description="weight decay of the optimizer")
    batch: Annotated[int, Field(ge=1)] = Field(16, description="(expected) batch size")
    epochs: Annotated[int, Field(ge=1)] = Field(5, description="passes over the records a round")
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimizer steps a round, instead of epochs"
    )


class DPSettings(Settings):
    """Local DP-SGD of one party. The unit is one record; neighbouring by add/remove."""

    epsilon: Positive | None = Field(
        None, description="target ε of the whole planned run; the noise multiplier is solved for it"
    )
    noise_multiplier: Positive | None = Field(None, description="noise multiplier σ, instead of a target ε")
    delta: Share = Field(1e-5, description="δ of the guarantee")
    clipping_norm: Positive = Field(1.0, description="bound C on the norm of a per-sample gradient")
    budget: Positive | None = Field(
        None, description="ε at which the party stops training; default: the target ε"
    )
    accountant: Literal["rdp", "prv"] = Field(
        "prv", description="how ε is composed: PRV (tight) or RDP (fast, looser)"
    )
    clipping: Literal["flat", "adaptive"] = Field(
        "flat",
        description="'adaptive' moves the clipping norm, from clipping_norm on, towards a quantile of the "
        "gradients' norms; the noisy counts that this takes are paid from the same ε",
    )
    clipping_quantile: Share = Field(0.5, description="quantile that adaptive clipping aims at")
    clipping_rate: Positive = Field(0.2, description="learning rate of adaptive clipping")
    gradients: Literal["auto", "ghost", "per-sample"] = Field(
        "auto",
        description="how gradients are clipped: 'per-sample' forms each, 'ghost' only its norm, for larger "
        "models; 'auto' takes the quickest for the model",
    )
    secure: bool = Field(
        False,
        description="draw batches and noise from the operating system's cryptographic source: safe against "
        "who can predict the seed, and no longer repeatable",
    )

    @model_validator(mode="after")
    def _one_of_epsilon_and_noise(self) -> DPSettings:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set exactly one of 'epsilon' and 'noise_multiplier'")
        return self


class DefenceSettings(Settings):
    """What a party does against leakage beside DP-SGD. None of it comes with a guarantee."""

    l1: NonNegative = Field(0.0, description="λ of an L1 penalty λ‖w‖₁")
    l2: NonNegative | None = Field(None, description="weight decay, instead of training.l2")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability with which a hidden unit is left out of a step"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of a label's weight that is spread over all classes"
    )
    mixup: NonNegative = Field(
        0.0, description="α of mixup: records are trained on in pairs, mixed by a share from Beta(α, α)"
    )
    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="instead of training.epochs")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="early stopping: epochs of a round without a lower loss on `stop_on`, before it ends",
    )
    stop_on: Literal["held-out", "public"] = Field(
        "held-out",
        description="records that early stopping looks at: the party's held-out ones, or public ones",
    )
    clip_update: Positive | None = Field(
        None, description="bound on the norm of the update that is sent; without noise"
    )
    sparsify: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the update's entries that is sent, the largest ones"
    )
    quantise: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None, description="bits per entry of the update that is sent"
    )

    @property
    def changes_update(self) -> bool:
        """Whether the update that is sent is another than the one that training brought."""
        return any(key is not None for key in (self.clip_update, self.sparsify, self.quantise))

    def applied_to(self, training: TrainingSettings) -> TrainingSettings:
        """Return ``training`` with this party's own weight decay and epochs."""
        own = {"l2": self.l2, "epochs": self.epochs}
        return training.model_copy(update={key: value for key, value in own.items() if value is not None})


NO_DEFENCE = DefenceSettings()


class OutputPolicy(Settings):
    """What the released model answers to an outsider; participants hold the weights."""

    policy: Literal["full", "rounded", "top-k", "label", "noisy", "laplace", "gaussian", "temperature"] = (
        Field("full", description="all probabilities as they are, or what is left of them")
    )
    digits: Annotated[int, Field(ge=0)] = Field(2, description="decimals of a 'rounded' answer")
    top: Annotated[int, Field(ge=1)] = Field(1, description="probabilities in a 'top-k' answer")
    noise: Positive = Field(0.05, description="standard deviation of what a 'noisy' answer adds to each")
    epsilon: Positive = Field(
        1.0,
        description="ε of one answer of 'laplace' or 'gaussian', whose noise hides any change of the model",
    )
    delta: Share = Field(1e-5, description="δ of one 'gaussian' answer")
    temperature: Positive = Field(
        5.0, description="by which 'temperature' divides the logits: above 1, answers are less sure"
    )
    queries: Annotated[int, Field(ge=1)] | None = Field(
        None, description="records that an attack may ask about in all; default: no limit"
    )


class AdversarySettings(Settings):
    """The malicious client, what it is assumed to own, and who else is scored beside it."""

    party: str | None = Field(None, description="the malicious party; default: the first one")
    attacks: list[str] = Field(["all"], description="attacks by name: `fedsim attacks list`")
    candidates: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="at most this many candidates, drawn at random; default: all records, of a "
        "person with several one; 20 if active",
    )
    knows_party: bool | None = Field(
        None,
        description="whether it knows which party a candidate would be a member of; "
        "default: only where parties are natural",
    )
    rounds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="rounds t whose models w_t attacks may look at, 0 being the start; default: all"
    )
    auxiliary: Literal["population", "disjoint", "own"] = Field(
        "population",
        description="records it owns to simulate with: 'population' overlaps the candidates, 'disjoint' is "
        "held-out records that are no candidates, 'own' is nothing but its own records",
    )
    auxiliary_size: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="records it owns beside candidates and its own; default: 'population' all the others, "
        "'disjoint' half of the held-out records",
    )
    shadows: Annotated[int, Field(ge=16)] = Field(
        256, description="shadow federations that it simulates, if an attack asks for them"
    )
    memory: Positive = Field(
        1.0, description="GiB that training them takes, about; with less, fewer are trained at a time"
    )
    observers: list[Literal["outsider", "participant", "coalition", "server"]] = Field(
        ["participant"], description="whose attacks to score on the same candidates; 'participant' always is"
    )
    coalition: list[str] = Field(
        [], description="parties that pool what they have with the adversary, if 'coalition' is an observer"
    )
    secure_aggregation: bool = Field(
        False, description="whether the server sees only the sum of the parties' updates"
    )
    output: OutputPolicy = OutputPolicy()
    active: Literal["gradient-ascent", "poisoning"] | None = Field(
        None,
        description="how it deviates from the protocol: 'gradient-ascent' moves its updates up the targets' "
        "loss, 'poisoning' trains on mislabelled copies of the targets; default: not at all",
    )
    targets: Annotated[int, Field(ge=1)] | None = Field(
        None, description="how many candidates an active adversary acts on, the first ones; default: all"
    )
    ascent_rate: Positive = Field(
        0.3, description="step γ of gradient ascent: γ times the summed gradient of the targets' losses"
    )
    ascent_limit: Positive = Field(
        1.0, description="an ascent is at most this many times as long as its round's honest update"
    )
    ascent_every: Annotated[int, Field(ge=2)] = Field(
        5, description="rounds from one ascent to the next, in which it watches the losses fall again"
    )
    poison_copies: Annotated[int, Field(ge=1)] = Field(
        1, description="mislabelled copies of each target in its training records"
    )

    @model_validator(mode="after")
    def _coalition_is_an_observer(self) -> AdversarySettings:
        if ("coalition" in self.observers) != bool(self.coalition):
            raise ValueError("observer 'coalition' and the names of its parties, 'coalition', go together")
        return self


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
    adversary: AdversarySettings = AdversarySettings()

    def defence_of(self, party: str) -> DefenceSettings | None:
        """Return what the party does beside DP-SGD, or None where that is nothing."""
        settings = self.defences.get(party, self.defences.get("all", "off"))
        return None if isinstance(settings, str) else settings

    def training_of(self, party: str) -> TrainingSettings:
        """Return how the party trains: as everyone does, but for what its defence replaces."""
        defence = self.defence_of(party)
        return self.training if defence is None else defence.applied_to(self.training)

    def dp_of(self, party: str) -> DPSettings | None:
        """Return the party's DP-SGD settings, or None where it is off."""
        settings = self.dp.get(party, self.dp.get("all", "off"))
        return None if isinstance(settings, str) else settings


def load(path: Path, overrides: Iterable[str] = (), dp: Iterable[str] = ()) -> Scenario:
    """Read the scenario file at ``path``.

    overrides: ``key.path=value`` texts, the value in TOML's syntax or a bare word.
    dp: ``party=ε`` texts ('all' for every party, 'off' or 'inf' to switch it off).

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    document = read(path)
    for text in overrides:
        put(document, *assignment(text), f"--set {text}")
    for text in dp:
        _switch_dp(document, text)
    return parse(document, source=str(path), folder=path.resolve().parent)


def read(path: Path) -> dict[str, Any]:
    """Return the document at ``path``, not validated; a scenario without a name is called as its file is.

    Raises:
        InputError: the file cannot be read or is not TOML.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error) from error
    document.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "scenario")
    return document


def put(document: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set ``key``, such as 'training.lr', in ``document``; ``source`` begins the error's sentence.

    Raises:
        InputError: a section of the key is a value.
    """
    *sections, last = [part.strip() for part in key.split(".")]
    table = document
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise InputError(f"{source}: '{section}' is a value, not a section")
    table[last] = value


def switch_dp(document: dict[str, Any], party: str, epsilon: float) -> None:
    """Set a party's target ε in ``document``; its other settings, or those of 'all', are kept. inf: off."""
    switch = document.setdefault("dp", {})
    if epsilon == math.inf:
        switch[party] = "off"
        return
    inherited = switch.get(party, switch.get("all", {}))
    kept = dict(inherited) if isinstance(inherited, dict) else {}
    kept.pop("noise_multiplier", None)
    switch[party] = {**kept, "epsilon": epsilon}


def parse(document: Mapping[str, Any], source: str = "scenario", folder: Path | None = None) -> Scenario:
    """Validate ``document``; relative paths in it are taken from ``folder``.

    Raises:
        InputError: see `load`.
    """
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{source}: {sentence(error)}") from error
    return scenario if folder is None else _with_absolute_paths(scenario, folder)


def save(scenario: Scenario, path: Path) -> None:
    """Write the scenario with every default filled in, so that running the file repeats the run."""
    write_text(path, tomli_w.dumps(scenario.model_dump(exclude_none=True)))


def assignment(text: str) -> tuple[str, Any]:
    """Return key and value of a 'key=value'; the value is in TOML's syntax, or a bare word.

    Raises:
        InputError: there is no key, or no '='.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {text}: expected key=value, such as training.lr=0.05")
    return key.strip(), _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


OFF = ("off", "inf", "∞")
"""Spellings of an ε that switch DP off."""


def _switch_dp(document: dict[str, Any], text: str) -> None:
    party, sign, value = text.rpartition("=")
    if not sign or not party:
        raise InputError(f"--dp {text}: expected party=ε, such as all=8 or hospital-2=3")
    if value in OFF:
        switch_dp(document, party, math.inf)
        return
    try:
        epsilon = float(value)
    except ValueError:
        raise InputError(f"--dp {text}: ε is '{value}'; it must be a number above 0 or 'off'") from None
    switch_dp(document, party, epsilon)


def _with_absolute_paths(scenario: Scenario, folder: Path) -> Scenario:
    def absolute(path: str) -> str:
        return str((folder / Path(path).expanduser()).resolve())

    data = scenario.data
    path = data.path
    if isinstance(path, str):
        path = absolute(path)
    elif path is not None:
        path = {party: absolute(file) for party, file in path.items()}
    public = absolute(data.public) if data.public else None
    model = scenario.model
    if ":" in model.name:
        model = model.model_copy(update={"folder": absolute(model.folder or ".")})
    data = data.model_copy(update={"path": path, "public": public})
    return scenario.model_copy(update={"data": data, "model": model})


def sentence(error: ValidationError, root: type[BaseModel] = Scenario) -> str:
    """Say the first problem of a document of type ``root`` in one sentence: key, value, what is valid."""
    problem = error.errors()[0]
    # Pydantic puts the tried member of a union into the location; only real keys are wanted.
    location = [str(part) for part in problem["loc"] if not _UNION_TAG.match(str(part))]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(location[:-1], root)
        where = f" in [{'.'.join(location[:-1])}]" if location[:-1] else ""
        return f"unknown key '{location[-1]}'{where}{suggestion(location[-1], known)}"
    key = ".".join(location)
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    message = message.replace("it should be a valid dictionary or instance of DPSettings", _DP_HINT)
    message = message.replace("it should be a valid dictionary or instance of DefenceSettings", _DEFENCE_HINT)
    shown = problem["input"]
    if isinstance(shown, dict):
        return f"[{key}] {message}" if key else message
    return f"{key} = {shown!r}: {message}"


_UNION_TAG = re.compile(r"^(function-|literal\[|dict\[|DPSettings$|DefenceSettings$|str$|int$|float$)")


_DP_HINT = "it should be 'off' or a table such as {epsilon = 8}"
_DEFENCE_HINT = "it should be 'off' or a table such as {label_smoothing = 0.1}"


def _keys_at(location: list[str], root: type[BaseModel]) -> list[str]:
    """Return the valid keys of the section at ``location``."""
    section: type[BaseModel] | None = root
    for part in location:
        if section is None:
            return []
        field = section.model_fields.get(part)
        section = _settings_in(field.annotation) if field else section
    return list(section.model_fields) if section else []


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_args(annotation):
        for part in typing.get_args(annotation):
            found = _settings_in(part)
            if found:
                return found
    return None
