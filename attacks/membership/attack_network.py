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


def fit(known: np.ndarray, member: np.ndarray, rng: np.random.Generator, rounds: int, classes: int) -> Scorer:
    """Train a network on the owner's records and return the scorer that it is.

    known: (m, rounds · (2C + 1 + h) + C), what `AttackNetwork` reads of each, side by side
    member: (m,) bool; both kinds weigh the same. Every step takes all records, so that the stream decides
        nothing but the initial weights. Trained in float32; scores in float64.
    """
    scaled = standardised(known)

    def prepared(values: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        seen, label = torch.tensor(scaled(values), dtype=dtype).tensor_split([-classes], dim=1)
        return seen.reshape(len(values), rounds, -1), label

    width = (known.shape[1] - classes) // rounds - 2 * classes - 1
    network = _initial(rounds, classes, width, seed=int(rng.integers(2**63)))
    parameters = list(network.parameters())
    step = adamw(parameters)
    inputs, target = prepared(known, torch.float32), torch.tensor(member, dtype=torch.float32)
    weight = torch.where(target > 0, 0.5 / target.mean(), 0.5 / (1 - target.mean()))
    for _ in range(STEPS):
        loss = functional.binary_cross_entropy_with_logits(network(*inputs), target, weight)
        step(torch.autograd.grad(loss, parameters))
    network.double()

    def score(values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [network(*prepared(part, torch.float64)).numpy() for part in _batches(values)]
        return np.concatenate(parts)

    return score


def adamw(parameters: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
    """Return ``step(gradients)``: AdamW (Loshchilov & Hutter 2019, algorithm 2) in place, `RATE` and `DECAY`.

    What torch.optim.AdamW(fused=True) calls, bit for bit; its first object takes over a second of imports.
    """
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = [torch.zeros(()) for _ in parameters]  # float32, as the kernel reads them

    def step(gradients: Sequence[Tensor]) -> None:
        torch._foreach_add_(steps, 1)
        with torch.no_grad():
            torch._fused_adamw_(
                list(parameters), list(gradients), means, squares, [], steps, lr=RATE, beta1=0.9, beta2=0.999,
                weight_decay=DECAY, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip

    return step


def _initial(rounds: int, classes: int, width: int, seed: int) -> AttackNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AttackNetwork(rounds, classes, width)


def _batches(values: np.ndarray, size: int = 2048) -> list[np.ndarray]:
    return [values[start : start + size] for start in range(0, len(values), size)]
