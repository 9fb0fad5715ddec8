"""Early stopping of a round."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsim.core.data.records import Records
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training.metrics import logits, mean_loss


class EarlyStopping:
    """Ends a round when the loss on records that it does not train on has stopped falling (Prechelt 1998).

    After every epoch, ⌈n / batch⌉ steps, and after the last step, the mean cross-entropy of the stopping
    records is measured, in evaluation mode and against their labels as they are. After ``patience`` epochs
    in a row that were not below the lowest so far the round ends. Its answer is the model of the epoch whose
    loss was the lowest, of equals the first; the model that the round set out from does not count.

    A party's own held-out records, if it stops on these, have influenced its model: they are non-members
    of a training that looked at them.
    """

    def __init__(self, module: nn.Module, records: Records, patience: int, epoch: int, device: str) -> None:
        self._module, self._records, self._device = module, records, device
        self._patience, self._epoch = patience, epoch
        self._lowest, self._waited, self._seen = math.inf, 0, 0
        self._best: dict[str, Tensor] = {}

    def due(self, step: int) -> bool:
        """Return whether an epoch ends with this step, the first being 1."""
        return step % self._epoch == 0

    def ends(self, step: int) -> bool:
        """Measure the module after ``step`` steps; return whether the round ends here."""
        self._seen = step
        loss = mean_loss(logits(self._module, self._records, device=self._device), self._records.labels)
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            self._best = {name: value.clone() for name, value in self._module.state_dict().items()}
            return False
        self._waited += 1
        return self._waited >= self._patience

    def finish(self, step: int) -> None:
        """Measure the module after the last ``step`` as well, and give it the weights of the best epoch."""
        if self._seen < step:
            self.ends(step)
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                value.copy_(self._best.get(name, value))  # no loss was a number: the weights are not either


def early_stopping(
    module: nn.Module, records: Records | None, defence: DefenceSettings, epoch: int, device: str
) -> EarlyStopping | None:
    """Return the early stopping that ``defence`` asks for, ``epoch`` steps being an epoch.

    Raises:
        ValueError: it asks for it and there are no records to stop on.
    """
    if defence.patience is None:
        return None
    if records is None or len(records) == 0:
        raise ValueError("early stopping needs records to look at")
    return EarlyStopping(module, records, defence.patience, epoch, device)
