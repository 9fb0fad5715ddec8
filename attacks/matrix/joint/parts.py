"""Joint inference: the membership of all records decoded together from what many shadow federations show.

LiRA (Carlini et al. 2022) looks at one record's φ at a time, and what other records' membership does to it is
noise. To a participant it is signal: every shadow starts from the w_0 that it was sent, so that what a
membership moves is nearly linear, and moves alike in shadows and target. Let X (S, D) be the shadows'
signals, centred and scaled, and Y (S, n) their memberships, centred. The best linear decoder of record i is
(XᵀX + λ)⁻¹ Xᵀy_i (linear minimum mean squared error; for many senders on one channel, Verdú 1998, §6.2). All
parts share it; they differ in their signals, and in what they trust of the influences Xᵀy_i, noisy estimates:

ridge decoding        all of Xᵀy_i; the signals are the φ of all records, or the weights of a global model
factor-adjusted LiRA  only the entries of Xᵀy_i at the record's own φ: each φ less what all other φ explain of
                      it (factors are known as far as their variance is above λ)

Early models tell the most: the first steps away from w_0 are nearly the sum of what each member adds to them.
Shadows of the first rounds alone are cheap, so that there are many (`SignalMatrix.early`); they are read by
the same parts.

One decomposition of XXᵀ serves all records, every λ, and in closed form the predictions for each shadow by a
fit without it. On these predictions λ is chosen, and every part is put on one scale, log likelihood ratios of
membership. How much to trust which part is learnt on shadows that were held back from all of this (`score`).
Time and memory are linear in the number of records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FIRST_MODELS, attack
from attacks.matrix.design import Design, Prediction, chunks, decodable, empty_prediction
from attacks.matrix.joint.decoder import Decoder, scaled
from attacks.matrix.signal_matrix import SignalMatrix

PENALTIES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""λ from which ridge decoding chooses, in units of the mean eigenvalue of XᵀX."""
FACTOR_PENALTIES = (0.1, 1.0, 10.0)
"""λ of factor-adjusted LiRA; the stacking weighs them, since few and many factors err in different ways."""
CHOOSING = 512
"""Records on which λ is chosen, at most."""


def ridge_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the φ of all, (n,) float64."""
    design = Design.of(matrix.member)
    return design.likelihood_ratio(_decoded(Decoder.of(matrix.shadows, matrix.target[None]), design))[0]


def weight_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the weights alone, (n,) float64.

    With the weights of several rounds, of the round that separates left-out shadows best.

    Raises:
        ValueError: the matrix holds no weights.
    """
    if matrix.shadow_weights is None or matrix.target_weights is None:
        raise ValueError("weight decoding needs the weights of target and shadows")
    _, ratios = max(_own_by_weights(matrix), key=lambda pair: pair[0])
    return ratios[0]


@attack(
    "first-update",
    sees=FIRST_MODELS,
    assumes=ALIKE_SHADOWS,
    source="ours: w_2 decoded",
    compares_with=("early",),
    inside=True,
    threshold=0.0,
)
def first_update(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return what shadows of the first rounds alone decode of the model after them, (n,) float64.

    Where the weights of that many shadows would not fit into memory, φ has to do.
    """
    decode = ridge_decoding if matrix.shadow_weights is None else weight_decoding
    return decode(matrix, rng)


def factor_adjusted_lira(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each φ less what all the others explain, (n,) float64.

    With the penalty that separates left-out shadows best.
    """
    target = matrix.target[None]
    decoder, design = Decoder.of(matrix.shadows, target), Design.of(matrix.member)
    predictions = (
        _adjusted(matrix.shadows, target, decoder, design, penalty) for penalty in FACTOR_PENALTIES
    )
    return design.likelihood_ratio(max(predictions, key=design.separation))[0]


def all_parts(matrix: SignalMatrix, rehearsed: SignalMatrix | None = None) -> Iterator[np.ndarray]:
    """Yield each part's log likelihood ratios of T targets, (T, n); LiRA at the last round first.

    rehearsed: whose shadows are the targets; None for the matrix's own target
    """
    phi = matrix.target[None] if rehearsed is None else rehearsed.shadows  # (T, R, n)
    design, decoder = Design.of(matrix.member), Decoder.of(matrix.shadows, phi)
    yield design.likelihood_ratio(_plain(matrix.shadows[:, -1], phi[:, -1]))
    yield design.likelihood_ratio(_decoded(decoder, design))
    for penalty in FACTOR_PENALTIES:
        yield design.likelihood_ratio(_adjusted(matrix.shadows, phi, decoder, design, penalty))
    if matrix.shadow_weights is None or matrix.target_weights is None:
        return
    if rehearsed is None:
        yield from (ratios for _, ratios in _own_by_weights(matrix))
    elif rehearsed.shadow_weights is not None:
        yield from (ratios for _, ratios in _by_weights(matrix, rehearsed.shadow_weights))


_FOUND: WeakKeyDictionary[SignalMatrix, list[tuple[float, np.ndarray]]] = WeakKeyDictionary()
"""What `_own_by_weights` made of a matrix, as long as it lives: more than one attack asks for it."""


def _own_by_weights(matrix: SignalMatrix) -> list[tuple[float, np.ndarray]]:
    """Return what `_by_weights` yields of the matrix's own target."""
    if matrix not in _FOUND:
        assert matrix.target_weights is not None
        _FOUND[matrix] = list(_by_weights(matrix, matrix.target_weights[None]))
    return _FOUND[matrix]


def _by_weights(matrix: SignalMatrix, targets: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yield, of each round's weights, how far they separate left-out shadows, and the ratios (T, n).

    targets: (T, K, P), the weights of the targets
    """
    assert matrix.shadow_weights is not None
    design = Design.of(matrix.member)
    for known, of_targets in zip(matrix.shadow_weights.swapaxes(0, 1), targets.swapaxes(0, 1), strict=True):
        prediction = _decoded(Decoder.of(known, of_targets), design)
        yield design.separation(prediction), design.likelihood_ratio(prediction)


def _plain(phi: np.ndarray, of_targets: np.ndarray) -> Prediction:
    """Return φ of the shadows (S, n) and targets (T, n) itself: LiRA's signal."""
    prediction = empty_prediction(len(phi), len(of_targets), phi.shape[1])
    for block in chunks(phi.shape[1], len(phi)):
        x = scaled(phi[:, block], of_targets[:, block], 1)
        prediction.shadows[:, block], prediction.targets[:, block] = x[: len(phi)], x[len(phi) :]
    return prediction


def _decoded(decoder: Decoder, design: Design) -> Prediction:
    """Return ridge decoding with the penalty that separates left-out shadows best.

    It is chosen on at most `CHOOSING` records, evenly spread.
    """
    records = np.flatnonzero(decodable(design.member))
    few_records = records[:: max(1, -(-len(records) // CHOOSING))] if len(records) else np.zeros(1, np.int64)
    all_of_them = len(few_records) == design.member.shape[1]
    few = design if all_of_them else Design(design.member[:, few_records], design.partner)
    projected = list(_projected(decoder, few))
    found = ((penalty, _ridge(decoder, few, penalty, projected)) for penalty in PENALTIES)
    best, prediction = max(found, key=lambda pair: few.separation(pair[1]))
    return prediction if all_of_them else _ridge(decoder, design, best, _projected(decoder, design))


Projected = Iterable[tuple[slice, np.ndarray, np.ndarray]]
"""Some columns of Y, these themselves (S, b), and QᵀY (r, b), which are the same for every λ."""


def _projected(decoder: Decoder, design: Design) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    for block in chunks(design.member.shape[1], len(design.member)):
        y = design.centred(block)
        yield block, y, decoder.q.T @ y


def _ridge(decoder: Decoder, design: Design, penalty: float, projected: Projected) -> Prediction:
    """Return X (XᵀX + λ)⁻¹ XᵀY of left-out shadows and of the targets."""
    penalty = penalty * decoder.unit
    inverse = (1 / (decoder.square + penalty)).astype(np.float32)  # (r,)
    inside = decoder.q * (inverse * decoder.square).astype(np.float32)  # (S, r), inside · Qᵀ is H − 1/S
    targets = (decoder.along * inverse).astype(np.float32)  # (T, r)
    left_out = decoder.leaving_out(penalty, design)
    prediction = empty_prediction(len(design.member), len(targets), design.member.shape[1])
    for block, y, along in projected:
        # (S, b): what a fit without the shadow predicts is y less that fit's residual.
        prediction.shadows[:, block] = y - left_out(y - inside @ along)
        prediction.targets[:, block] = targets @ along
    return prediction


def _adjusted(
    phi: np.ndarray, of_targets: np.ndarray, decoder: Decoder, design: Design, penalty: float
) -> Prediction:
    """Return X (XᵀX + λ)⁻¹ b_i of left-out shadows and targets, b_i = Xᵀy_i at the record's own φ only.

    phi: (S, R, n), the signals of ``decoder``; of_targets: (T, R, n). Outside the span of the shadows the
    inverse is 1/λ.
    """
    penalty = penalty * decoder.unit
    inverse = decoder.q * (1 / (decoder.square + penalty)).astype(np.float32)  # (S, r)
    along = (decoder.along / decoder.square).astype(np.float32)  # (T, r)
    inside = (along / (decoder.square + penalty)).astype(np.float32)  # (T, r)
    left_out = decoder.leaving_out(penalty, design)
    left = (len(phi) - 1 - design.paired).astype(np.float32)[:, None]  # (S, 1), shadows in the other fits
    prediction = empty_prediction(len(phi), len(of_targets), phi.shape[2])
    for block in chunks(phi.shape[2], len(phi)):
        y = design.centred(block)
        # (S, b): minus the mean of y without the shadow and its partner, since all of y sums to 0.
        others = design.together(y) / left
        for round in range(phi.shape[1]):
            both = scaled(phi[:, round, block], of_targets[:, round, block], decoder.size)
            x, t = both[: len(phi)], both[len(phi) :]
            projected = decoder.q.T @ x  # (r, b)
            influence = np.einsum("si,si->i", x, y)  # (b,), xᵢᵀyᵢ over all shadows
            # (S, b): the part of it that a fit without the shadow must not see, y centred anew.
            seen = design.together(x * y) + design.together(x) * others
            prediction.shadows[:, block] += left_out(inverse @ projected) * (influence - seen)
            # (T, b): what of a target's φ lies outside the span of the shadows.
            outside = (t - along @ projected) / np.float32(penalty)
            prediction.targets[:, block] += (inside @ projected + outside) * influence
    return prediction
