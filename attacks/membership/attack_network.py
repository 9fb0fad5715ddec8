"""The white-box attack network of Nasr, Shokri & Houmansadr (2019, fig. 2), as small as one party's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.membership.crossfit import Scorer, standardised

KERNELS, WIDTH = 4, 16
STEPS, RATE, DECAY = 60, 1e-2, 0.1


class AttackNetwork(nn.Module):
    """Gradient, activations, outputs, loss and label each have a component; an encoder joins them.

    The last layer's gradient of one record is δ ãᵀ, δ = ∂ℓ/∂logits and ã the activations a with a 1 for the
    bias. Kernels as wide as one of its rows go over the rows, as in the paper's convolution: since
    (δ ãᵀ) k = δ (ãᵀ k), the gradient itself need not be formed.

    Each component's inputs are divided by how many they are. Under Adam, whose steps are of one size, a wide
    component would otherwise learn the few records by heart before a narrow one has learnt anything.
    """

    def __init__(self, rounds: int, classes: int, activations: int) -> None:
        super().__init__()
        self.widths = [classes, classes, 1, activations]
        self.kernels = nn.Linear(activations + 1, KERNELS, bias=False)
        sizes = [rounds * classes * KERNELS, rounds * classes, rounds, rounds * activations, classes]
        self.components = nn.ModuleList(nn.Linear(size, WIDTH) for size in sizes)
        self.encoder = nn.Linear(len(sizes) * WIDTH, 1)

    def forward(self, seen: Tensor, label: Tensor) -> Tensor:
        """Return the log-odds of 'member' (n,).

        seen: (n, rounds, 2C + 1 + h), δ, p, ℓ and a of each round; label: (n, C)
        """
        delta, p, loss, a = seen.split(self.widths, dim=2)
        rows = self.kernels(functional.pad(a, (0, 1), value=1.0) / (a.shape[2] + 1))  # (n, rounds, kernels)
        gradient = functional.relu(delta[..., None] * rows[:, :, None, :])
        inputs = [part.flatten(1) for part in (gradient, p, loss, a, label)]
        pairs = zip(self.components, inputs, strict=True)
        hidden = torch.cat([component(part / part.shape[1]) for component, part in pairs], dim=1)
        return self.encoder(functional.relu(hidden)).squeeze(1)


Fold = tuple[np.ndarray, np.ndarray]
"""What a network learns from: what `AttackNetwork` reads of m records side by side, and their membership."""


def fit(folds: Sequence[Fold], rng: np.random.Generator, rounds: int, classes: int) -> list[Scorer]:
    """Train a network on each fold of the owner's records, all together, and return the scorers they are.

    folds: known (m, rounds · (2C + 1 + h) + C) and member (m,) bool each; both kinds weigh the same. Every
        step takes all records, so that the stream decides nothing but the initial weights. Trained in
        float32; scores in float64.
    """
    scalings = [standardised(known) for known, _ in folds]
    width = (folds[0][0].shape[1] - classes) // rounds - 2 * classes - 1
    networks = [_initial(rounds, classes, width, seed=int(rng.integers(2**63))) for _ in folds]
    inputs = [
        _prepared(scaled(known), torch.float32, rounds, classes)
        for scaled, (known, _) in zip(scalings, folds, strict=True)
    ]
    _train(networks, inputs, [torch.tensor(member, dtype=torch.float32) for _, member in folds])
    return [
        _scorer(network.double(), scaled, rounds, classes)
        for network, scaled in zip(networks, scalings, strict=True)
    ]


def _prepared(scaled: np.ndarray, dtype: torch.dtype, rounds: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return what `AttackNetwork.forward` takes."""
    seen, label = torch.tensor(scaled, dtype=dtype).tensor_split([-classes], dim=1)
    return seen.reshape(len(scaled), rounds, -1), label


def _scorer(
    network: AttackNetwork, scaled: Callable[[np.ndarray], np.ndarray], rounds: int, classes: int
) -> Scorer:
    def score(values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                network(*_prepared(scaled(part), torch.float64, rounds, classes)).numpy()
                for part in _batches(values)
            ]
        return np.concatenate(parts)

    return score


def _train(
    networks: Sequence[AttackNetwork],
    inputs: Sequence[tuple[Tensor, Tensor]],
    members: Sequence[Tensor],
) -> None:
    """Train each network on its own records; stacked, since the records are few and calls what costs time."""
    stacked = [torch.stack(each).detach() for each in zip(*(n.parameters() for n in networks), strict=True)]
    seen, label = (
        nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in zip(*inputs, strict=True)
    )
    target = nn.utils.rnn.pad_sequence(list(members), batch_first=True)  # (F, m)
    # Of a record in its network's loss; 0 of what fills up a smaller fold.
    weight = nn.utils.rnn.pad_sequence([_weight(member) for member in members], batch_first=True)
    step = adamw(stacked)
    for _ in range(STEPS):
        parameters = [each.requires_grad_() for each in stacked]
        odds = stacked_forward(networks[0], parameters, seen, label)
        loss = functional.binary_cross_entropy_with_logits(odds, target, weight, reduction="sum")
        step(torch.autograd.grad(loss, parameters))
    with torch.no_grad():
        for number, network in enumerate(networks):
            for parameter, each in zip(network.parameters(), stacked, strict=True):
                parameter.copy_(each[number])


def _weight(member: Tensor) -> Tensor:
    """Return each record's weight in the mean over (m,) records, in which both kinds weigh one half."""
    return torch.where(member > 0, 0.5 / member.mean(), 0.5 / (1 - member.mean())) / len(member)


def stacked_forward(like: AttackNetwork, parameters: Sequence[Tensor], seen: Tensor, label: Tensor) -> Tensor:
    """Return the log-odds (F, n) of F networks, each of its own records; as `AttackNetwork.forward`.

    parameters: (F, …) each, in the order of ``like.parameters()``; seen: (F, n, rounds, 2C + 1 + h); label:
    (F, n, C)
    """
    kernels, *components, weight, bias = parameters
    delta, p, loss, a = seen.split(like.widths, dim=3)
    padded = functional.pad(a, (0, 1), value=1.0) / (a.shape[3] + 1)
    rows = torch.bmm(padded.flatten(1, 2), kernels.mT).view(*a.shape[:3], -1)  # (F, n, rounds, kernels)
    gradient = functional.relu(delta[..., None] * rows[:, :, :, None, :])
    inputs = [part.flatten(2) for part in (gradient, p, loss, a, label)]
    hidden = [
        torch.baddbmm(shift[:, None], part / part.shape[2], factor.mT)
        for part, factor, shift in zip(inputs, components[::2], components[1::2], strict=True)
    ]
    joined = functional.relu(torch.cat(hidden, dim=2))
    return torch.baddbmm(bias[:, None], joined, weight.mT).squeeze(2)


def adamw(parameters: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
    """Return ``step(gradients)``: AdamW (Loshchilov & Hutter 2019, algorithm 2) in place, `RATE` and `DECAY`.

    What torch.optim.AdamW(fused=True) calls, bit for bit; its first object takes over a second of imports.
    The kernel reads gradients as they lie in memory, where a transposed one would be another.
    """
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = [torch.zeros(()) for _ in parameters]  # float32, as the kernel reads them

    def step(gradients: Sequence[Tensor]) -> None:
        torch._foreach_add_(steps, 1)
        aligned = [gradient.contiguous() for gradient in gradients]
        with torch.no_grad():
            torch._fused_adamw_(
                list(parameters), aligned, means, squares, [], steps, lr=RATE, beta1=0.9, beta2=0.999,
                weight_decay=DECAY, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip

    return step


def _initial(rounds: int, classes: int, width: int, seed: int) -> AttackNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AttackNetwork(rounds, classes, width)


def _batches(values: np.ndarray, size: int = 2048) -> list[np.ndarray]:
    return [values[start : start + size] for start in range(0, len(values), size)]
