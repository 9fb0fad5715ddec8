"""Settings of the model and of a party's local training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedsim.core.errors import suggestion
from fedsim.core.scenario.base import NonNegative, Positive, Settings


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
