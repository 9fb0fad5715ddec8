"""Joint inference: the membership of all records decoded together from what many shadow federations show.

LiRA (Carlini et al. 2022) looks at one record's φ at a time, and what other records' membership does to it is
noise. To a participant it is signal: every shadow starts from the w_0 that it was sent, so that what a
membership moves is nearly linear, and moves alike in shadows and target. Let X (S, D) be the shadows'
signals, centred and scaled, and Y (S, n) their memberships, centred. The best linear decoder of record i is
(XᵀX + λ)⁻¹ Xᵀy_i (linear minimum mean squared error; for many senders on one channel, Verdú 1998, §6.2). All
parts share it; they differ in what they trust of the influences Xᵀy_i, noisy estimates from S shadows:

ridge_decoding        all of Xᵀy_i; the signals are the φ of every record at every round
weight_decoding       all of Xᵀy_i; the signals are the weights of one round's global model
factor_adjusted_lira  only the entries of Xᵀy_i at the record's own φ: each φ less what all other φ explain of
                      it (factors are known as far as their variance is above λ)
score                 logistic stacking of all of these, fitted on shadows that were held back

Early weights tell the most: the first step away from w_0 is nearly linear in the memberships. `SignalMatrix`
may hold the weights of K rounds, (S, K, P); each round is a part of its own.

One decomposition serves all records, every λ, and in closed form the predictions for shadows that are left
out, on which λ is chosen and every part is put on one scale: log likelihood ratios of membership.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from attacks.signal_matrix import SignalMatrix

PENALTIES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""λ from which ridge decoding chooses, in units of the mean eigenvalue of XᵀX."""
FACTOR_PENALTIES = (0.1, 1.0, 10.0)
"""λ of factor-adjusted LiRA; the stacking weighs them, since few and many factors err in different ways."""
FOLDS, HELD_BACK = 4, 128
"""The stacking holds back each fold once; with over FOLDS · HELD_BACK shadows, HELD_BACK once."""
DRAWN_TOGETHER = -0.2
"""Neighbouring shadows whose memberships correlate below this are left out together."""


def score(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log-odds of membership by all parts together, (n,) float64.

    Plain LiRA at w_T is one of the parts, so that the stacking need not be worse than it with few shadows. 0
    for a record about which nothing can be said: in no shadow, or in all.
    """
    parts, member = rehearse(matrix)
    of_target = _parts(*_shadows_and_target(matrix), Design.of(matrix.member))[:, 0]
    odds = _stacking(parts, member)(_tempered(of_target, parts))
    return np.where(_decodable(matrix.member), odds, 0.0)


def rehearse(matrix: SignalMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Return what the parts make of held-back shadows by fits on the others, and the truth about them.

    The parts' log likelihood ratios are (parts, H, n) float64, the memberships (H, n) bool.
    """
    signals, _ = _shadows_and_target(matrix)
    found, member = [], []
    for held in _held_back(matrix.member):
        others, asked = (
            _Signals(signals.phi[rows], [weights[rows] for weights in signals.weights])
            for rows in (~held, held)
        )
        found.append(_parts(others, asked, Design.of(matrix.member[~held])))
        member.append(matrix.member[held])
    return np.concatenate(found, axis=1), np.concatenate(member)


def ridge_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the φ of all, (n,) float64."""
    shadows, target = _shadows_and_target(matrix)
    return _decoded(Decoder.of(shadows.phi, target.phi), Design.of(matrix.member))[0]


def weight_decoding(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each record decoded from the weights alone, (n,) float64.

    With the weights of several rounds, of the round that separates left-out shadows best.

    Raises:
        ValueError: the matrix holds no weights.
    """
    shadows, target = _shadows_and_target(matrix)
    if not shadows.weights:
        raise ValueError("weight decoding needs the weights of target and shadows")
    design = Design.of(matrix.member)
    predictions = (
        prediction
        for known, asked in zip(shadows.weights, target.weights, strict=True)
        for prediction in _ridge(Decoder.of(known, asked), design)
    )
    return _best(predictions, design)[0]


def first_update(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return what one round of shadows decodes of the first update w_1 − w_0, (n,) float64.

    The first step from a shared w_0 is nearly the sum of what each member adds to it. Where the weights of
    that many shadows would not fit into memory, φ at w_1 has to do.
    """
    decode = ridge_decoding if matrix.shadow_weights is None else weight_decoding
    return decode(matrix, rng)


def factor_adjusted_lira(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log likelihood ratio of each φ less what all the others explain, (n,) float64."""
    shadows, target = _shadows_and_target(matrix)
    decoder, design = Decoder.of(shadows.phi, target.phi), Design.of(matrix.member)
    return _best((_adjusted(decoder, design, p) for p in FACTOR_PENALTIES), design)[0]


# ---------------------------------------------------------------------------------- stacking of the parts
@dataclass(frozen=True)
class _Signals:
    """phi: (S, R, n); weights: (S, P) each, one for every round of which the weights are known."""

    phi: np.ndarray
    weights: list[np.ndarray]


def _shadows_and_target(matrix: SignalMatrix) -> tuple[_Signals, _Signals]:
    """Return the signals of the shadows, and of the target as one row."""
    if matrix.shadow_weights is None or matrix.target_weights is None:
        return _Signals(matrix.shadows, []), _Signals(matrix.target[None], [])
    of_target = _Signals(matrix.target[None], _by_round(matrix.target_weights[None]))
    return _Signals(matrix.shadows, _by_round(matrix.shadow_weights)), of_target


def _by_round(weights: np.ndarray) -> list[np.ndarray]:
    """Return the weights (S, P) of one round, or (S, K, P) of several, round by round."""
    return [weights] if weights.ndim == 2 else list(weights.swapaxes(0, 1))


def _decodable(member: np.ndarray) -> np.ndarray:
    return np.asarray(member.any(axis=0) & ~member.all(axis=0))


def _held_back(member: np.ndarray) -> Iterator[np.ndarray]:
    """Yield masks (S,) of shadows to hold back; shadows that were drawn together stay together."""
    partner = Design.of(member).partner
    group = np.minimum(partner, np.arange(len(partner)))
    folds = max(FOLDS, len(partner) // HELD_BACK)
    parts = np.array_split(np.unique(group), folds)
    return (np.isin(group, part) for part in parts[: FOLDS if folds == FOLDS else 1])


def _parts(shadows: _Signals, targets: _Signals, design: Design) -> np.ndarray:
    """Return all parts' log likelihood ratios of T targets, (parts, T, n) float64."""
    last = Decoder.of(shadows.phi[:, -1:], targets.phi[:, -1:], decompose=False)
    decoder = Decoder.of(shadows.phi, targets.phi)
    parts = [design.likelihood_ratio(Prediction(last.signals, last.targets)), _decoded(decoder, design)]
    for penalty in FACTOR_PENALTIES:
        parts.append(design.likelihood_ratio(_adjusted(decoder, design, penalty)))
    del decoder  # as large as the signals, several times
    for known, asked in zip(shadows.weights, targets.weights, strict=True):
        parts.append(_decoded(Decoder.of(known, asked), design))
    return np.stack(parts)


def _tempered(target: np.ndarray, rehearsed: np.ndarray) -> np.ndarray:
    """Return the parts of the target (k, n), less of those that the rehearsals (k, H, n) do not prepare for.

    Where members are unknown to the adversary its shadows do not resemble the target, and a part may answer
    with noise that no shadow showed. Then its ratios spread more over the records than in rehearsals; a
    Gaussian ratio is inversely proportional to the variance, so it is divided by as much as the spread
    exceeds all but a twentieth of the rehearsals'. A mean beyond theirs is moved into their range.
    """
    means, spreads = rehearsed.mean(axis=2), rehearsed.var(axis=2)  # (k, H)
    mean, spread = target.mean(axis=1), np.maximum(target.var(axis=1), 1e-30)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    share = np.minimum(1.0, np.quantile(spreads, 0.95, axis=1) / spread)
    return np.asarray((target - mean[:, None]) * share[:, None] + np.clip(mean, low, high)[:, None])


def _stacking(parts: np.ndarray, member: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map from parts (k, …) to log-odds: a logistic regression on (k, H, n), all records alike."""
    from sklearn.linear_model import LogisticRegression

    records = _decodable(member)
    inputs = parts[:, :, records].reshape(len(parts), -1).T
    truth = member[:, records].ravel()
    if len(np.unique(truth)) < 2:
        return lambda asked: np.zeros(asked.shape[1:])
    scale = np.maximum(inputs.std(axis=0), 1e-12)
    model = LogisticRegression(max_iter=500).fit(inputs / scale, truth)
    weights, intercept = model.coef_[0] / scale, float(model.intercept_[0])
    return lambda asked: np.tensordot(weights, asked, axes=1) + intercept


# --------------------------------------------------------------------------------------------- the design
@dataclass(frozen=True)
class Prediction:
    """Scores, higher = member: (S, n) of every shadow by a fit without it, (T, n) of targets."""

    shadows: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Design:
    """Who was a member of which shadow, and which shadows have to be left out together.

    member: (S, n) bool. partner: (S,) int, the shadow drawn together with this one, itself if none: where
    one holds exactly what the other does not, a fit on the one has seen the other's mirror image.
    """

    member: np.ndarray
    partner: np.ndarray

    @staticmethod
    def of(member: np.ndarray) -> Design:
        """Return the design with neighbouring shadows paired where their memberships exclude each other."""
        sign = member - member.mean(axis=0, dtype=np.float32)
        scale = np.maximum(np.linalg.norm(sign, axis=1), 1e-12)
        likeness = (sign[1:] * sign[:-1]).sum(axis=1) / (scale[1:] * scale[:-1])
        partner = np.arange(len(member))
        for s in np.flatnonzero(likeness < DRAWN_TOGETHER):
            if partner[s] == s:
                partner[s], partner[s + 1] = s + 1, s
        return Design(member, partner)

    @cached_property
    def centred(self) -> np.ndarray:
        """Y (S, n) float32: memberships less each record's share of the shadows."""
        return self.member - self.member.mean(axis=0, dtype=np.float32)

    @cached_property
    def paired(self) -> np.ndarray:
        """(S,) bool, whether there is a partner."""
        return self.partner != np.arange(len(self.partner))

    def together(self, values: np.ndarray) -> np.ndarray:
        """Return each row of ``values`` (S, …) added to its partner's."""
        total = values.copy()
        total[self.paired] += values[self.partner[self.paired]]
        return total

    def likelihood_ratio(self, scores: Prediction) -> np.ndarray:
        """Return log N(s; μ_in, σ²) − log N(s; μ_out, σ²) of the targets' scores, (T, n) float64.

        μ_in − μ_out in units of σ is shrunk towards that of all records: what chance explains of its spread
        is no difference between records (empirical Bayes; Efron & Morris 1973). It is at least 0: no decoder
        has members score less, but predictions of nothing for left-out shadows err to that side.
        """
        mean_in, mean_out, deviation = self._moments(scores.shadows)
        known = deviation > 0
        inside = np.maximum(self.member.sum(axis=0), 1)
        chance = 1 / inside + 1 / np.maximum(len(self.member) - inside, 1)
        deviation = np.where(known, deviation, 1.0)
        distance = np.maximum(_shrunk((mean_in - mean_out) / deviation, chance, known), 0.0)
        middle = (mean_in + mean_out) / 2
        return np.asarray(np.where(known, distance, 0.0) * (scores.targets - middle) / deviation)

    def separation(self, scores: Prediction) -> float:
        """Return how far members' scores lie above the others', in standard deviations, mean over records."""
        mean_in, mean_out, deviation = self._moments(scores.shadows)
        known = deviation > 0
        if not known.any():
            return 0.0
        return float(((mean_in - mean_out)[known] / deviation[known]).mean())

    def _moments(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return μ_in, μ_out and the σ of both, (n,) each; σ = 0 where a side has fewer than two shadows."""
        scores = scores.astype(np.float64)
        n = self.member.sum(axis=0)
        m = len(self.member) - n
        total, totals = (scores * self.member).sum(axis=0), scores.sum(axis=0)
        mean_in, mean_out = total / np.maximum(n, 1), (totals - total) / np.maximum(m, 1)
        scatter = ((scores - np.where(self.member, mean_in, mean_out)) ** 2).sum(axis=0)
        deviation = np.sqrt(scatter / np.maximum(n + m - 2, 1))
        usable = (np.minimum(n, m) > 1) & (deviation > 1e-12)
        return mean_in, mean_out, np.where(usable, deviation, 0.0)


def _shrunk(values: np.ndarray, noise: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Shrink ``values`` (n,), each measured with variance ``noise``, towards the mean of the known ones."""
    if known.sum() < 3:
        return values
    mean = values[known].mean()
    true = max(0.0, float(values[known].var(ddof=1) - noise[known].mean()))
    return np.asarray(mean + (values - mean) * true / (true + noise))


# -------------------------------------------------------------------------------------------- the decoder
@dataclass(frozen=True)
class Decoder:
    """X = Q diag(σ) Uᵀ, the decomposition from which every linear decoder of these signals follows.

    signals: X (S, D) float32, each column with mean 0 and variance 1/D over the shadows, or constant 0
    targets: (T, D) float32, centred and scaled likewise
    q: (S, r) float32, orthonormal columns; square: σ² (r,) float64
    """

    signals: np.ndarray
    targets: np.ndarray
    q: np.ndarray
    square: np.ndarray

    @staticmethod
    def of(signals: np.ndarray, targets: np.ndarray, decompose: bool = True) -> Decoder:
        """Scale the signals (S, …) and targets (T, …), and decompose XXᵀ, or XᵀX where that is far smaller.

        XᵀX is formed in float64: the columns of Q follow from it by a division by σ, which is nearly 0 for
        some of the directions that matter, since the φ of a model move together.
        """
        size = len(signals)
        x = _scaled(signals.reshape(size, -1), targets.reshape(len(targets), -1))
        x, targets = x[:size], x[size:]
        decoder = Decoder(x, targets, np.zeros((size, 0), np.float32), np.zeros(0))
        if not decompose:
            return decoder
        if size <= 1.5 * x.shape[1]:
            square, q = _eigen(x @ x.T)
        else:
            wide = x.astype(np.float64)
            square, vectors = _eigen(wide.T @ wide)
            q = (wide @ (vectors / np.sqrt(square))).astype(np.float32)
        return replace(decoder, q=q, square=square)

    @cached_property
    def unit(self) -> float:
        """Mean eigenvalue of XᵀX over as many directions as S centred shadows can fill."""
        shadows, size = self.signals.shape
        return max(float(self.square.sum()) / max(1, min(shadows - 1, size)), 1e-12)

    @cached_property
    def projected(self) -> np.ndarray:
        """Diag(σ) Uᵀ = QᵀX, (r, D) float32."""
        return np.asarray(self.q.T @ self.signals)

    @cached_property
    def targets_along(self) -> np.ndarray:
        """The targets' products with U diag(σ), (T, r) float32."""
        return np.asarray((self.targets @ self.signals.T) @ self.q)

    def leaving_out(self, penalty: float, design: Design) -> Callable[[np.ndarray], np.ndarray]:
        """Return the map of rows (S, …) that turns residuals of one fit into those of fits without the row.

        It multiplies with (I − H)⁻¹ of each pair of shadows, H = Q diag(σ²/(σ² + λ)) Qᵀ + 1/S being the hat
        matrix of ridge regression with an intercept (for one row: Golub, Heath & Wahba 1979, §2).
        """
        share = (self.square / (self.square + penalty)).astype(np.float32)
        own = 1 - 1 / len(self.q) - (self.q**2) @ share
        other = np.where(design.paired, -1 / len(self.q) - (self.q * self.q[design.partner]) @ share, 0.0)
        partners = np.where(design.paired, own[design.partner], 1.0)
        determinant = np.maximum(own * partners - other**2, 1e-6)
        a, b = ((part / determinant).astype(np.float32)[:, None] for part in (partners, -other))
        return lambda rows: a * rows + b * rows[design.partner]


def _scaled(signals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return both (S + T, D), scaled by the signals' statistics; what is not finite counts as the mean."""
    x = np.concatenate([signals, targets], dtype=np.float32)
    if not np.isfinite(x).all():
        finite = np.isfinite(x)
        x[~finite] = 0
        known = finite[: len(signals)]
        mean = x[: len(signals)].sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        x = np.where(finite, x, mean.astype(np.float32))
    x -= x[: len(signals)].mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = x[: len(signals)].std(axis=0, dtype=np.float64)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    x *= (factor / np.sqrt(x.shape[1])).astype(np.float32)
    return x


def _eigen(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (r,) float64 that are more than rounding errors, and their vectors (m, r)."""
    from scipy.linalg import eigh

    values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    kept = values > 1e-7 * max(float(values[-1]), 1e-30)
    return values[kept].astype(np.float64), vectors[:, kept]


# ---------------------------------------------------------------------------------------------- the parts
def _best(predictions: Iterable[Prediction], design: Design) -> np.ndarray:
    """Return the log likelihood ratios of the prediction that separates left-out shadows best, (T, n)."""
    return design.likelihood_ratio(max(predictions, key=design.separation))


def _decoded(decoder: Decoder, design: Design) -> np.ndarray:
    return _best(_ridge(decoder, design), design)


def _ridge(decoder: Decoder, design: Design) -> Iterator[Prediction]:
    """Yield X (XᵀX + λ)⁻¹ XᵀY of left-out shadows and of the targets, for each penalty."""
    y = design.centred
    along = decoder.q.T @ y  # (r, n)
    for penalty in PENALTIES:
        inverse = (1 / (decoder.square + penalty * decoder.unit)).astype(np.float32)
        residual = y - (decoder.q * (inverse * decoder.square).astype(np.float32)) @ along
        left_out = decoder.leaving_out(penalty * decoder.unit, design)
        yield Prediction(y - left_out(residual), (decoder.targets_along * inverse) @ along)


def _adjusted(decoder: Decoder, design: Design, penalty: float) -> Prediction:
    """Return X (XᵀX + λ)⁻¹ b_i of left-out shadows and of targets, b_i = Xᵀy_i at the record's own φ only."""
    penalty = penalty * decoder.unit
    (shadows, records), y = design.member.shape, design.centred
    inverse = (1 / (decoder.square + penalty)).astype(np.float32)
    whitened = decoder.leaving_out(penalty, design)((decoder.q * inverse) @ decoder.projected)
    of_targets = _whitened_targets(decoder, penalty)
    left = (shadows - 1 - design.paired).astype(np.float32)[:, None]
    found = Prediction(np.zeros((shadows, records), np.float32), np.zeros((len(of_targets), records)))
    for start in range(0, decoder.signals.shape[1], records):  # round by round
        columns = slice(start, start + records)
        x = decoder.signals[:, columns]
        influence = (x * y).sum(axis=0)
        seen = design.together(x * y) + design.together(x) * design.together(y) / left
        found.shadows[:] += whitened[:, columns] * (influence - seen)
        found.targets[:] += of_targets[:, columns] * influence
    return found


def _whitened_targets(decoder: Decoder, penalty: float) -> np.ndarray:
    """Return the targets times (XᵀX + λ)⁻¹, (T, D); outside the span of the shadows the inverse is 1/λ."""
    along = decoder.targets_along / decoder.square
    inside = (along / (decoder.square + penalty)).astype(np.float32) @ decoder.projected
    outside = decoder.targets - along.astype(np.float32) @ decoder.projected
    return np.asarray(inside + outside / np.float32(penalty))
