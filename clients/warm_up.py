"""Imports that a party's first message would otherwise wait for, and that its timeout is not meant for."""

from __future__ import annotations

from fedsim.core.scenario.settings import Scenario


def warm_up(scenario: Scenario) -> None:
    """Import what the parties' training takes: torch's optimizers alone bring hundreds of modules."""
    private = any(settings != "off" for settings in scenario.dp.values())
    stack = scenario.model.name in ("logistic", "mlp")  # trained by written-out steps, without torch.optim
    if not stack:
        import torch

        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if private:
        from fedsim.core.privacy.ledger import Ledger

        Ledger().add(1.0, 0.1, 1).epsilon(1e-5)
    if private and not stack:
        import opacus.grad_sample  # noqa: F401
