"""What all sections of a scenario share."""

from __future__ import annotations

import typing
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all sections: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number, as which Python takes them."""
        if _holds_truth(value):
            types = _types_in(cls.model_fields[info.field_name or ""].annotation)
            if bool not in types and types & {int, float}:
                raise ValueError("it should be a number, neither true nor false")
        return value


def _holds_truth(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(map(_holds_truth, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _types_in(annotation: Any) -> set[Any]:
    """Return the plain types that an annotation is made of; those of a nested section are its own affair."""
    parts = typing.get_args(annotation)
    return set().union(*map(_types_in, parts)) if parts else {annotation}
