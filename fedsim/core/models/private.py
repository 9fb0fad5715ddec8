"""What differential privacy asks of a module."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.imports import short
from fedsim.core.models.layers import linear_stack


def check_dp_ready(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> None:
    """Refuse a module that cannot be trained with DP-SGD: what one record does must not depend on the others.

    With ``input_shape`` given, a custom module is also tried on two records.

    Raises:
        InputError: naming the layer: BatchNorm, and whatever else Opacus rejects; or saying what went wrong.
    """
    if linear_stack(module) is not None:
        return
    for name, layer in module.named_modules():
        problem = _dp_problem(layer)
        if problem:
            raise InputError(
                f"model: layer '{name or type(layer).__name__}' cannot be trained with DP-SGD: {problem}"
            )
    if input_shape is not None:
        _try_privately(module, input_shape)


def _dp_problem(layer: nn.Module) -> str:
    """Return what keeps this layer, without its children, from DP-SGD; empty if nothing does."""
    from opacus.validators import ModuleValidator

    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return f"{type(layer).__name__} mixes the records of a batch; use GroupNorm instead"
    own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
    if own and any(True for _ in layer.buffers()):
        return f"{type(layer).__name__} has parameters and buffers, whose values would not be private"
    validate = ModuleValidator.VALIDATORS.get(type(layer))
    problems = validate(layer) if validate else []
    return str(problems[0]).partition(". ")[0] if problems else ""


def _try_privately(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    from opacus import GradSampleModule

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        pair, other = torch.rand(2, *input_shape), torch.rand(1, *input_shape)
        try:
            private = GradSampleModule(copy.deepcopy(module).cpu().train())
            torch.manual_seed(0)  # the same dropout for both
            logits = private(pair)
            logits.sum().backward()
            torch.manual_seed(0)
            beside_another = private(torch.cat([pair[:1], other]))
            missing = [name for name, p in private._module.named_parameters() if _without_gradient(p)]
        except Exception as error:
            raise InputError(f"model: Opacus cannot train it with DP-SGD: {short(error)}") from error
    if missing:
        raise InputError(f"model: parameter '{missing[0]}' takes no part in the output; freeze or remove it")
    if not torch.allclose(logits[0], beside_another[0], atol=1e-5):
        raise InputError(
            "model: the output for a record depends on the other records in its batch, so that no record has "
            "a gradient of its own to clip for DP-SGD"
        )


def ghost_problem(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return why Opacus' ghost clipping cannot find the norms of the module's gradients, '' if it can.

    Tried on two records against their gradients themselves: it takes each use of a layer for all of it.
    """
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    norms = []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        for wrap in (GradSampleModule, GradSampleModuleFastGradientClipping):
            torch.manual_seed(0)  # the same dropout for both
            pair = torch.rand(2, *input_shape)
            try:
                private = wrap(copy.deepcopy(module).cpu().train(), loss_reduction="sum")
                private(pair).logsumexp(1).sum().backward()
            except Exception as error:
                return short(error)
            if wrap is GradSampleModule:
                samples = [p.grad_sample.flatten(1) for p in private.parameters() if p.requires_grad]
                norms.append(torch.cat(samples, 1).norm(dim=1))
            else:
                norms.append(private.get_norm_sample().detach())
    alike = torch.allclose(norms[0], norms[1], rtol=1e-3)
    return "" if alike else "the norms that it finds are not the gradients'"


def _without_gradient(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and getattr(parameter, "grad_sample", None) is None
