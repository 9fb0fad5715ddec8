"""What an error lets out of a party."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs import finished_run

from fedsim.core.errors import FedsimError

FACTORY = """
from torch import nn

class Loud(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.out = nn.Linear(inputs, classes)

    def forward(self, x):
        if self.training and (x < 0).any():  # as records are, and what modules are tried on is not
            raise ValueError(f"a record: {x[0].tolist()}")
        return self.out(x)

def make(input_shape, classes):
    return Loud(input_shape[0], classes)
"""


@pytest.mark.parametrize("private", [False, True])
def test_the_text_of_an_error_stays_at_a_party_under_dp(tmp_path: Path, private: bool) -> None:
    (tmp_path / "loud.py").write_text(FACTORY)
    with pytest.raises(FedsimError, match="round 1 ended with 0 usable replies") as caught:
        finished_run(
            tmp_path,
            model={"name": "loud:make", "folder": str(tmp_path)},
            federation={"rounds": 1},
            training={"epochs": 1, "batch": 20},
            dp={"all": {"noise_multiplier": 1.0, "accountant": "rdp"}} if private else {},
            adversary={"attacks": ["loss"]},
        )
    assert ("a record" in str(caught.value)) != private
    assert ("ValueError; under DP its text stays at the party" in str(caught.value)) == private
