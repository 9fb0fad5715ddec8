"""What differential privacy asks of a module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.imports import short
from fedsim.core.models.layers import linear_stack

RECORDS, MANY = 3, 80
"""Records on which a user's own module is tried, and as many as a lot may have."""

LOUD = 100.0
"""Factor by which a trial scales the weights, so that what bounds them in the forward pass shows."""


def check_dp_ready(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> None:
    """Refuse a module that cannot be trained with DP-SGD: what one record does must not depend on the others.

    DP-SGD makes private what passes through the clipped and noised gradient, and nothing else. So the
    *effect* of training passes is tried, with ``input_shape`` given and for any module but a plain stack of
    linear layers: no parameter and no buffer may change in a forward or a backward pass, outputs may depend
    on no other record, of the batch or of earlier ones, and the per-sample gradients must be those that
    autograd gives each record by itself.

    Raises:
        InputError: naming the layer or the parameter, and saying what is wrong with it.
    """
    if linear_stack(module) is not None:
        return
    for name, layer in module.named_modules():
        problem = _dp_problem(layer)
        if problem:
            raise _refused(name or type(layer).__name__, problem)
    if input_shape is None:
        return
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        batches = torch.rand(RECORDS, *input_shape), torch.rand(RECORDS + 2, *input_shape).round()
        try:
            _check_state(module, batches)
            _check_outputs(module, batches)
            _check_gradients(module, batches[0])
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"model: Opacus cannot train it with DP-SGD: {short(error)}") from error


def _refused(layer: str, problem: str) -> InputError:
    return InputError(f"model: layer '{layer}' cannot be trained with DP-SGD: {problem}")


def _dp_problem(layer: nn.Module) -> str:
    """Return what keeps this layer, without its children, from DP-SGD; empty if nothing does."""
    from opacus.validators import ModuleValidator

    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return f"{type(layer).__name__} mixes the records of a batch; use GroupNorm instead"
    if getattr(layer, "max_norm", None) is not None:
        return (
            f"max_norm = {layer.max_norm} shortens the rows that private records touch, without noise; "
            "leave max_norm out"
        )
    validate = ModuleValidator.VALIDATORS.get(type(layer))
    problems = validate(layer) if validate else []
    return str(problems[0]).partition(". ")[0] if problems else ""


def _trial(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """Return a copy in training mode, its weights scaled, without dropout: nothing of it is random."""
    trial = copy.deepcopy(module).cpu().train()
    for layer in trial.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        elif isinstance(getattr(layer, "dropout", None), float):  # attention and recurrent layers
            layer.dropout = 0.0  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in trial.parameters():
            parameter.mul_(scale)
    return trial


def _check_state(module: nn.Module, batches: Sequence[Tensor]) -> None:
    """Refuse a module of which a training pass changes a buffer or a parameter: it would not be noised.

    Raises:
        InputError: naming the layer.
    """
    for scale in (1.0, LOUD):
        trial = _trial(module, scale)
        before = {name: value.detach().clone() for name, value in _state(trial)}
        for batch in batches:
            trial(batch).sum().backward()
        for name, value in _state(trial):
            if name not in before or not torch.equal(value.nan_to_num(), before[name].nan_to_num()):
                raise _kept(module, name)


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@contextmanager
def constant_buffers(module: nn.Module) -> Iterator[None]:
    """Refuse what was trained in this block if a buffer of ``module`` is not what it was before.

    `check_dp_ready` tries a few passes; a module may begin to keep what it sees after many.

    Raises:
        InputError: naming the layer.
    """
    before = {name: value.detach().clone() for name, value in module.named_buffers()}
    yield
    for name, value in module.named_buffers():
        if name not in before or not torch.equal(value.nan_to_num(), before[name].nan_to_num()):
            raise _kept(module, name)


def _kept(module: nn.Module, name: str) -> InputError:
    layer, _, own = name.rpartition(".")
    return _refused(
        layer or type(module).__name__,
        f"training changes '{own}' by itself, past the clipping and the noise; keep it constant",
    )


def _check_outputs(module: nn.Module, batches: Sequence[Tensor]) -> None:
    """Refuse a module whose output for a record depends on other records: beside it, or before it.

    Raises:
        InputError: saying which.
    """

    def of_the_first(records: Tensor, earlier: Tensor | None = None) -> Tensor:
        trial = _trial(module)
        if earlier is not None:
            trial(earlier).sum().backward()
        torch.manual_seed(0)  # whatever is random in it is the same in every pass
        return trial(records)[0].detach()

    first, second = batches
    alone = of_the_first(first)
    if not torch.isfinite(alone).all():
        raise InputError("model: what it makes of records between 0 and 1 is not finite; mend its weights")
    crowd = second[torch.arange(MANY) % len(second)]
    for others in (second[: RECORDS - 1], second[:0], crowd):  # what mixes may do so in large batches alone
        if not torch.allclose(alone, of_the_first(torch.cat([first[:1], others])), atol=1e-5):
            raise InputError(
                "model: the output for a record depends on the other records in its batch, so that no record "
                "has a gradient of its own to clip for DP-SGD"
            )
    if not torch.allclose(alone, of_the_first(first, earlier=second), atol=1e-5):
        raise InputError(
            "model: the output for a record depends on the records of earlier batches, which it keeps past "
            "the clipping and the noise of DP-SGD"
        )


def _check_gradients(module: nn.Module, records: Tensor) -> None:
    """Refuse a module whose per-sample gradients are not those of each record by itself.

    Raises:
        InputError: naming the parameter.
    """
    from opacus import GradSampleModule

    plain = _trial(module)
    private = GradSampleModule(_trial(module), loss_reduction="sum")
    logits = private(records)
    labels = torch.arange(len(records)) % logits.shape[1]
    functional.cross_entropy(logits, labels, reduction="sum").backward()
    trained = {name: p for name, p in private._module.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        samples = getattr(parameter, "grad_sample", None)
        if samples is None:
            raise InputError(f"model: parameter '{name}' takes no part in the output; freeze or remove it")
        if not isinstance(samples, Tensor) or len(samples) != len(records):
            raise _refused(name.rpartition(".")[0] or name, _NOT_OWN)
    if _is_random(plain, records):
        return  # two passes cannot be compared
    for i in range(len(records)):
        loss = functional.cross_entropy(plain(records[i : i + 1]), labels[i : i + 1])
        of_one = torch.autograd.grad(loss, [plain.get_parameter(name) for name in trained], allow_unused=True)
        for (name, parameter), gradient in zip(trained.items(), of_one, strict=True):
            truth = torch.zeros_like(parameter) if gradient is None else gradient
            if not torch.allclose(parameter.grad_sample[i], truth, rtol=1e-3, atol=1e-5):
                raise _refused(name.rpartition(".")[0] or name, _NOT_OWN)


_NOT_OWN = (
    "Opacus finds gradients there that are not those of one record each; give the layer inputs whose first "
    "dimension is the batch, such as position numbers repeated for every record"
)


def _is_random(module: nn.Module, records: Tensor) -> bool:
    with torch.no_grad():
        return not torch.equal(module(records), module(records))


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
