"""What training with and without DP have in common: what is asked, what is reported, the loop of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedsim.core.data.records import Records
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.paths import TrainingPath
from fedsim.core.training.stopping import EarlyStopping

Batches = Iterator[tuple[Tensor, Tensor]]
"""Features (B, …) float32 with labels (B,) int64 or soft targets (B, K) float32."""

Gradients = Literal["auto", "ghost", "per-sample"]


@dataclass(frozen=True)
class LocalTraining:
    """How a party trains in one round, apart from what chance decides (`core.training.draws`).

    settings: the party's own (`Scenario.training_of`), with its weight decay and epochs
    defence: how it regularises (`core.training.updates`); its update is not shaped by training
    proximal_mu: μ of FedProx's proximal term μ/2 ‖w − w_t‖² (Li et al. 2020, eq. 2), w_t being the weights on
        entry
    device: torch's name of where the arithmetic is done
    stop_on: the records that early stopping looks at, where the defence has a patience
    path: see `core.training.paths`; of training without DP
    transfer: public records on which a student is trained, where the defence distils on such
    gradients: under DP, 'per-sample' takes Opacus' per-sample gradients whatever the module; 'ghost' and
        'auto' see `DPSettings`
    """

    settings: TrainingSettings
    defence: DefenceSettings = NO_DEFENCE
    proximal_mu: float = 0.0
    device: str = "cpu"
    stop_on: Records | None = None
    gradients: Gradients = "auto"
    transfer: Records | None = None
    path: TrainingPath = "reference"


@dataclass(frozen=True)
class TrainingReport:
    """What one round of local training says about itself.

    steps: optimizer steps made
    loss: mean cross-entropy (nats) of the round's batches, each before its step, as it was minimised: with
        smoothed and mixed targets, and with dropout; None under DP, where it would be an answer about private
        records outside the accounting
    clipping_norm: C after the last step of adaptive clipping, None without it
    """

    steps: int
    loss: float | None = None
    clipping_norm: float | None = None


def make_steps(
    batches: Batches,
    step: Callable[[int, Tensor, Tensor], None],
    stop: EarlyStopping | None = None,
    *,
    store: Callable[[], None] = lambda: None,
    watch: Callable[[], object] = lambda: None,
) -> int:
    """Call ``step(number, x, target)`` on every batch until early stopping ends the round; return how many.

    store: writes the parameters into the module that `EarlyStopping` measures, where they live elsewhere
    watch: called before the first step and after every one
    """
    made = 0
    watch()
    for number, (x, target) in enumerate(batches):
        step(number, x, target)
        made = number + 1
        watch()
        if stop and stop.due(made):
            store()
            if stop.ends(made):
                break
    store()
    if stop:
        stop.finish(made)
    return made
