"""What a party does against leakage beside DP-SGD: how it regularises, and what it makes of its update.

None of it comes with a guarantee. This page is the definition; `core.training.stacked` does the same for many
models at a time.

A step on a batch x (B, …), y (B,) of K classes:

1. Label smoothing s (Szegedy et al. 2016, section 7): targets t_i = (1 − s)·onehot(y_i) + s/K.
2. Mixup α (Zhang et al. 2018): one λ ~ Beta(α, α) and one permutation π of the batch; both x_i and t_i become
   λ·(·)_i + (1 − λ)·(·)_π(i).
3. Dropout p (Srivastava et al. 2014), inverted: each output of each activation layer is 0 with probability p,
   else divided by 1 − p; drawn anew per record and step; off whenever a model is evaluated.
4. g = the gradient of the batch's mean of −Σ_k t_ik log softmax(f(x_i))_k; under DP-SGD, of which all the
   above is a part of the record's own loss, the noisy clipped sum over the expected batch.
   Without DP, HAMP and RelaxLoss follow another slope (`core.training.slopes`).
5. g + μ(w − w_t) + λ₁ sign(w) + λ₂ w goes to the optimizer: FedProx's term, then L1 with sign(0) = 0, then
   weight decay, biases included. None of these is clipped: they tell nothing of the records.

Where a party distils (`core.training.distillation`), all of this is how its teachers and its student train.
Early stopping (`core.training.stopping`) ends a round; `shaped` is applied to the update w − w_t that it
brought.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from fedsim.core import rng
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training import shipped
from fedsim.core.training.draws import Draws

Weights = Mapping[str, np.ndarray]


def shape_answer(module: nn.Module, sent: Weights, defence: DefenceSettings, draws: Draws) -> None:
    """Shape the update that ``module`` made of the weights ``sent``, in place, where the defence does.

    Buffers, which no gradient moves, stay as they are.
    """
    if not defence.changes_update:
        return
    trained = weights_of(module)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    update = shaped({name: trained[name] - sent[name] for name in names}, defence, draws)
    load_weights(module, trained | {name: sent[name] + update[name] for name in names})


def shaped(update: Weights, defence: DefenceSettings, draws: Draws) -> dict[str, np.ndarray]:
    """Return what is sent of ``update`` Δ = w − w_t: clipped, sparsified, filtered as shipped, quantised.

    update: float arrays by parameter name; what is returned is float32
    """
    names, flat = list(update), _flat(update)
    if defence.clip_update is not None:
        flat = clipped(flat, defence.clip_update)
    if defence.sparsify is not None:
        flat = sparsified(flat, defence.sparsify)
    if defence.shipped is not None:
        stream = rng.generator(draws.seed("shipped filter"), "noise")
        flat = shipped.filtered(flat, defence.shipped, stream)
    pieces = np.split(flat, np.cumsum([update[name].size for name in names])[:-1])
    if defence.quantise is not None:
        uniform = draws.rounding([piece.size for piece in pieces])
        pairs = zip(pieces, uniform, strict=True)
        pieces = [quantised(piece, defence.quantise, numbers) for piece, numbers in pairs]
    return {
        name: piece.reshape(update[name].shape).astype(np.float32)
        for name, piece in zip(names, pieces, strict=True)
    }


def clipped(update: np.ndarray, norm: float) -> np.ndarray:
    """Return Δ·min(1, C / ‖Δ‖₂), the update (p,) shortened to norm C where it is longer."""
    length = float(np.linalg.norm(update))
    return update * (norm / length) if length > norm else update


def sparsified(update: np.ndarray, share: float) -> np.ndarray:
    """Return the update (p,) with all but its ⌈share·p⌉ entries of largest magnitude set to 0.

    Over all parameters together, the first of equals first (Aji & Heafield 2017). What is left out is not
    carried over to the next round as it is there: nothing of a round's records outlives it.
    """
    largest = np.argsort(-np.abs(update), kind="stable")[: int(np.ceil(share * update.size))]
    sparse = np.zeros_like(update)
    sparse[largest] = update[largest]
    return sparse


def quantised(update: np.ndarray, bits: int, uniform: np.ndarray) -> np.ndarray:
    """Return the update of one parameter (p,) rounded at random to 2^bits values, true on average.

    The values are equally spaced from −r to r, r = max |Δ|, which is sent with them. An entry goes to one of
    its two neighbours, to the upper with probability (entry − lower) / spacing, by u ~ U[0, 1):
    ⌊(Δ + r) / spacing + u⌋ (Alistarh et al. 2017, QSGD, with the maximum as the scale). An entry that is 0,
    and so not sent, stays 0.

    uniform: u of every entry, (p,) float64
    """
    reach, top = float(np.abs(update).max(initial=0)), 2**bits - 1
    if reach == 0:
        return update
    spacing = 2 * reach / top
    level = np.minimum(np.floor((update + reach) / spacing + uniform), top)
    return np.where(update == 0, 0, level * spacing - reach)


def _flat(update: Weights) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in update.values()]).astype(np.float64)
