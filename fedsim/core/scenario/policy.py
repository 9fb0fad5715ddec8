"""What a run must show to pass: thresholds on the ends of intervals, each with where it comes from."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedsim.core.errors import suggestion
from fedsim.core.scenario.base import Positive, Settings, Share

THRESHOLDS = ("max_auc", "max_tpr", "max_epsilon", "max_shown_epsilon", "min_accuracy")


class PolicySettings(Settings):
    """Thresholds of the gate; what is not set is not asked. A figure that cannot be told does not pass."""

    max_auc: Share | None = Field(
        None, description="largest upper end of the interval of the strongest attack's AUC, over all parties"
    )
    max_tpr: Share | None = Field(
        None, description="the same of the largest TPR at 1 % FPR of any attack; no attack: TPR = .01"
    )
    max_epsilon: Positive | None = Field(
        None, description="largest ε that a victim has spent by its accountant; ∞ where its DP-SGD is off"
    )
    max_shown_epsilon: Positive | None = Field(
        None, description="largest lower bound on ε that an attack's own rates prove"
    )
    min_accuracy: Share | None = Field(
        None, description="smallest lower end of the interval of the final model's held-out accuracy"
    )
    sources: dict[str, str] = Field(
        {}, description="threshold → where it comes from, such as a document; default: the user's own choice"
    )

    @model_validator(mode="after")
    def _sources_are_of_thresholds(self) -> PolicySettings:
        for name in self.sources:
            if name not in THRESHOLDS or getattr(self, name) is None:
                raise ValueError(
                    f"'sources' names '{name}', which is no threshold that is set"
                    f"{suggestion(name, self.thresholds())}"
                )
        return self

    def thresholds(self) -> dict[str, float]:
        """Return the thresholds that are set, by name."""
        values = {name: getattr(self, name) for name in THRESHOLDS}
        return {name: float(value) for name, value in values.items() if value is not None}

    def source(self, name: str) -> str:
        """Return where a threshold comes from."""
        return self.sources.get(name, "the user's own choice")
