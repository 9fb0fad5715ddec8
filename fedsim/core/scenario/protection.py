"""Settings of what protects records: DP-SGD, other defences, central DP, the output policy."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsim.core.scenario.base import NonNegative, Positive, Settings, Share
from fedsim.core.scenario.training import TrainingSettings


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


class DPSettings(Settings):
    """Local DP-SGD of one party. The unit is one record, or one person; neighbouring by add/remove."""

    epsilon: Positive | None = Field(
        None, description="target ε of the whole planned run; the noise multiplier is solved for it"
    )
    noise_multiplier: Positive | None = Field(None, description="noise multiplier σ, instead of a target ε")
    delta: Share = Field(1e-5, description="δ of the guarantee")
    clipping_norm: Positive | None = Field(
        None,
        description="bound C on the norm of a per-sample gradient; default: training.private.clipping_norm",
    )
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
    unit: Literal["record", "person"] = Field(
        "record",
        description="what ε is a promise about: one record, or all of one person's (data.person), whose "
        "mean gradient is then clipped; training.batch counts persons",
    )
    records_per_person: Annotated[int, Field(ge=1)] | None = Field(
        None, description="with unit = 'person', at most this many of a person's records are trained on"
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

    @model_validator(mode="after")
    def _bound_is_of_persons(self) -> DPSettings:
        if self.records_per_person is not None and self.unit == "record":
            raise ValueError("'records_per_person' needs unit = 'person'")
        if self.unit == "person" and self.gradients == "ghost":
            raise ValueError(
                "gradients = 'ghost' forms no gradient to average over a person; use 'per-sample'"
            )
        return self


class ShippedSettings(Settings):
    """A filter of updates as a framework ships it, with what it claims (`fedsim.core.training.shipped`)."""

    mechanism: Literal["flower-local-dp", "gaussian", "percentile", "sparse-vector"] = Field(
        "flower-local-dp",
        description="Flower's LocalDpMod; the same with the sensitivity of its clipping; NVFlare's "
        "PercentilePrivacy; or its SVTPrivacy",
    )
    epsilon: Positive = Field(1.0, le=1e6, description="ε that is claimed, a round")
    delta: Share = Field(1e-5, description="δ of that")
    clipping_norm: Positive = Field(1.0, description="bound C on the norm of the update")
    sensitivity: Positive | None = Field(
        None, description="that 'flower-local-dp' assumes; default: clipping_norm, as its examples have it"
    )
    percentile: Annotated[float, Field(ge=0, le=100)] = Field(
        10.0, description="of |Δw| below which 'percentile' sends nothing"
    )
    gamma: Positive | None = Field(
        None,
        description="to which entries are clipped; default: .01 of 'percentile', 1e-5 of 'sparse-vector'",
    )
    fraction: Share = Field(0.1, description="share of the entries that 'sparse-vector' draws")
    noise_epsilon: Positive = Field(
        0.1, description="ε of the noise on what 'sparse-vector' sends (noise_var)"
    )
    tau: NonNegative = Field(1e-6, description="threshold of 'sparse-vector', before its noise")

    @property
    def reach(self) -> float:
        """γ, with the mechanism's own default."""
        return self.gamma or (0.01 if self.mechanism == "percentile" else 1e-5)

    @property
    def deviation(self) -> float:
        """σ of the Gaussian mechanisms, by the classical formula."""
        norm = self.clipping_norm
        sensitivity = 2 * norm if self.mechanism == "gaussian" else self.sensitivity or norm
        return sensitivity * math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon


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
    relaxloss: NonNegative = Field(
        0.0, description="α of RelaxLoss, in nats: a batch whose mean loss is below it is not fitted further"
    )
    hamp_entropy: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="γ of HAMP: labels are softened until their entropy is this share of the largest"
    )
    hamp_weight: NonNegative = Field(
        0.0, description="α of HAMP: by how much the entropy of the model's answers is rewarded"
    )
    distil: Literal["selena", "dmp"] | None = Field(
        None,
        description="the party answers with a student of teachers that it trains in each round: 'selena' on "
        "its own records, each labelled by teachers that did not train on it; 'dmp' on public records",
    )
    teachers: Annotated[int, Field(ge=1)] = Field(5, description="teachers of a distillation, K")
    left_out: Annotated[int, Field(ge=1)] = Field(
        2, description="teachers of 'selena' that do not train on a record, L, and label it"
    )
    distil_temperature: Positive = Field(
        1.0, description="temperature at which teachers label: above 1, labels are softer"
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
    shipped: ShippedSettings | None = Field(
        None, description="a filter of the update as a framework ships it, with what it claims"
    )

    @model_validator(mode="after")
    def _go_together(self) -> DefenceSettings:
        if self.relaxloss and self.mixup:
            raise ValueError("'relaxloss' flattens the answer to one label, 'mixup' has two; set one of them")
        if self.hamp_entropy and self.label_smoothing:
            raise ValueError("'hamp_entropy' and 'label_smoothing' both soften labels; set one of them")
        if self.distil == "selena" and not self.left_out < self.teachers:
            raise ValueError("'left_out' is less than 'teachers': each record is trained on by one at least")
        return self

    @property
    def reads_public(self) -> bool:
        """Whether the party's training looks at public records."""
        return self.stop_on == "public" or self.distil == "dmp"

    @property
    def shapes_slope(self) -> bool:
        """Whether a step follows another slope than the cross-entropy's."""
        return bool(self.relaxloss or self.hamp_weight)

    @property
    def mixes_records(self) -> list[str]:
        """The keys under which no gradient is of one record alone, as DP-SGD needs it, or is not clipped."""
        keys = ("mixup", "relaxloss", "hamp_weight", "distil")
        return [key for key in keys if getattr(self, key)]

    def smoothing_of(self, classes: int) -> float:
        """Return the share of a label's weight that is spread over all classes."""
        if not self.hamp_entropy:
            return self.label_smoothing
        return smoothing_for_entropy(self.hamp_entropy, classes)

    @property
    def changes_update(self) -> bool:
        """Whether the update that is sent is another than the one that training brought."""
        keys = (self.clip_update, self.sparsify, self.quantise, self.shipped)
        return any(key is not None for key in keys)

    def applied_to(self, training: TrainingSettings) -> TrainingSettings:
        """Return ``training`` with this party's own weight decay and epochs."""
        own = {"l2": self.l2, "epochs": self.epochs}
        return training.model_copy(update={key: value for key, value in own.items() if value is not None})


NO_DEFENCE = DefenceSettings()


def smoothing_for_entropy(share: float, classes: int) -> float:
    """Return the least s at which (1 − s)·one-hot + s/K has ``share`` of the entropy log K, in [0, 1).

    HAMP's high-entropy labels (Chen & Pattabiraman 2024, §IV-A): the true class keeps p, the others share
    1 − p, p as large as the entropy allows. Found by bisection; the entropy grows with s.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        other = middle / classes
        top = 1 - middle + other
        entropy = -top * math.log(top) - (classes - 1) * other * (math.log(other) if other else 0.0)
        low, high = (middle, high) if entropy < share * math.log(classes) else (low, middle)
    return min(high, 1 - 1e-9)


PolicyName = Literal[
    "full", "rounded", "top-k", "label", "noisy", "laplace", "gaussian", "temperature", "hamp", "memguard",
    "votes",
]  # fmt: skip

STATES_EPSILON: tuple[PolicyName, ...] = ("laplace", "gaussian", "votes")
"""Policies of which every answer has an ε."""


class ReleaseSettings(Settings):
    """What is served after the federation. Participants were sent the global models whatever it is."""

    kind: Literal["final", "ensemble", "student"] = Field(
        "final",
        description="the final global model; an ensemble, whose members' probabilities are averaged; or a "
        "student of that ensemble, trained on public records",
    )
    of: Literal["parties", "federation"] = Field(
        "parties",
        description="an ensemble of models that the parties train apart, each on a part of its records, or "
        "of the federation's last global models",
    )
    members: Annotated[int, Field(ge=1)] = Field(
        1, description="models that each party trains; or how many of the last global models"
    )

    @property
    def votes(self) -> bool:
        """Whether one record can have changed one member alone, as the noise of votes assumes."""
        return self.kind == "ensemble" and self.of == "parties"


class OutputPolicy(Settings):
    """What the released model answers to an outsider; participants hold the weights."""

    policy: PolicyName = Field("full", description="all probabilities as they are, or what is left of them")
    digits: Annotated[int, Field(ge=0)] = Field(2, description="decimals of a 'rounded' answer")
    top: Annotated[int, Field(ge=1)] = Field(1, description="probabilities in a 'top-k' answer")
    noise: Positive = Field(0.05, description="standard deviation of what a 'noisy' answer adds to each")
    epsilon: Positive = Field(
        1.0,
        description="ε of one answer of 'laplace' or 'gaussian', whose noise hides any change of the model, "
        "or of 'votes', whose noise hides one record of one party",
    )
    distortion: Positive = Field(
        0.2, description="how far 'memguard' moves an answer, in expectation: the sum of all changes"
    )
    delta: Share = Field(1e-5, description="δ of one 'gaussian' answer")
    temperature: Positive = Field(
        5.0, description="by which 'temperature' divides the logits: above 1, answers are less sure"
    )
    queries: Annotated[int, Field(ge=1)] | None = Field(
        None, description="records that an attack may ask about in all; default: no limit"
    )
