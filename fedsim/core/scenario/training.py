"""Settings of the model and of a party's local training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedsim.core.errors import suggestion
from fedsim.core.scenario.base import NonNegative, Positive, Settings


class PretrainSettings(Settings):
    """How the first global model is trained on public records (Adam)."""

    epochs: Annotated[int, Field(ge=1)] = Field(10, description="passes over the public records")
    lr: Positive = Field(3e-3, description="learning rate")
    batch: Annotated[int, Field(ge=1)] = Field(16, description="batch size")


class ModelSettings(Settings):
    """The torch model that the parties train together."""

    name: str = Field(
        "mlp",
        description="'logistic', 'mlp', 'cnn'; of text 'gpt' or 'lstm'; or your own factory as "
        "'module:callable'",
    )
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda given: [64, 64] if given.get("name") in ("cnn", "gpt", "lstm") else [64],
        description="widths of the MLP's hidden layers, [64] by default; of the GPT's blocks or the LSTM's "
        "layers, and channels of the CNN, [64, 64]",
    )
    vocabulary: Annotated[int, Field(ge=3)] | None = Field(
        None, description="token ids of a language model; learnt from public text, so leave it out"
    )
    pretrain: PretrainSettings | None = Field(
        None, description="training of w_0 on the public records, before the first round; default: none"
    )
    folder: str | None = Field(
        None, description="where to import 'module:callable' from; default: the scenario's folder"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        choices = ("logistic", "mlp", "cnn", "gpt", "lstm")
        if name not in choices and not re.fullmatch(r"[\w.]+:\w+", name):
            raise ValueError(f"unknown model{suggestion(name, choices)} (or 'module:callable')")
        return name


class PrivateTrainingSettings(Settings):
    """A party's local training in one round where it is under DP-SGD, in the place of `TrainingSettings`.

    Noise asks for other steps than plain training: few and large ones, on all records at once, since a step's
    noise does not shrink with its batch, and that of all rounds adds up in the model (De et al. 2022). The
    defaults were chosen for ε from 1 to 8 and parties of fifty to some hundred records
    (`experiments/results/defaults.md`).
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = Field(0.4, description="learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="SGD momentum")
    l2: NonNegative = Field(0.0, description="weight decay of the optimizer")
    batch: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="expected size of a Poisson batch; 'all': every record in every step"
    )
    epochs: Annotated[int, Field(ge=1)] = Field(1, description="passes over the records a round")
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimizer steps a round, instead of epochs"
    )
    clipping_norm: Positive = Field(
        1.0, description="bound C on the norm of a per-sample gradient, where dp.….clipping_norm sets none"
    )


class TrainingSettings(Settings):
    """A party's local training in one round."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = Field(0.1, description="learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="SGD momentum")
    l2: NonNegative = Field(0.0, description="weight decay of the optimizer")
    batch: Annotated[int, Field(ge=1)] = Field(16, description="(expected) batch size")
    epochs: Annotated[int, Field(ge=1)] = Field(2, description="passes over the records a round")
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimizer steps a round, instead of epochs"
    )
    private: PrivateTrainingSettings = Field(
        PrivateTrainingSettings(), description="how a party under DP-SGD trains instead"
    )

    def under_dp(self) -> TrainingSettings:
        """Return how a party under DP-SGD trains.

        A batch of 'all' is one larger than any party; a step takes q = 1 (`core.privacy.plan.make_plan`).
        """
        own = self.private.model_dump(exclude={"clipping_norm"})
        own["batch"] = ALL_RECORDS if own["batch"] == "all" else own["batch"]
        return self.model_copy(update=own)


ALL_RECORDS = 2**31 - 1
"""A batch that no party has the records for."""
