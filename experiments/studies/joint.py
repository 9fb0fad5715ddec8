"""How much joint inference finds, part by part, against LiRA on the same shadows and games.

    python experiments/studies/joint.py experiments/hospitals.toml --shadows 256 1024 4096 --games 16
    python experiments/studies/joint.py experiments/heart.toml --data-dir DATA --open

The games share w_0 and the adversary's own records, so that one set of shadows serves all of them; they
differ in who the others' members are. Open world: the adversary owns a random half of the others' records,
draws its shadows from these alone, and half of the target's members are unknown to it. `first update` is
weight decoding of w_1 from shadows of one round, which cost a T-th of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from attacks import joint, lira, shadow
from attacks.comparison import Scored, compare_auc, compare_tpr, delong
from attacks.evaluation import tpr_at_fpr
from attacks.signal_matrix import SignalMatrix
from fedsim import models, rng, runner
from fedsim.scenario import load

SHARES = (0.025, 0.075, 0.15, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Rounds at which φ is observed, as shares of all."""

RATES = (0.01, 0.001)

Score = Callable[[SignalMatrix, np.random.Generator], np.ndarray]


def with_weights(score: Score, which: slice) -> Score:
    """Let ``score`` see the weights of w_1, of w_T or of both."""

    def seen(matrix: SignalMatrix, stream: np.random.Generator) -> np.ndarray:
        assert matrix.target_weights is not None and matrix.shadow_weights is not None
        weights = matrix.target_weights[which], matrix.shadow_weights[:, which]
        return score(replace(matrix, target_weights=weights[0], shadow_weights=weights[1]), stream)

    return seen


ATTACKS: dict[str, Score] = {
    "LiRA": lira.online,
    "factor-adjusted LiRA": joint.factor_adjusted_lira,
    "ridge decoding": joint.ridge_decoding,
    "weight decoding": with_weights(joint.weight_decoding, slice(1, 2)),
    "joint": with_weights(joint.score, slice(1, 2)),
    "first update": with_weights(joint.weight_decoding, slice(0, 1)),
    "joint with first update": joint.score,
}


@dataclass(frozen=True)
class Laboratory:
    """A prepared scenario, with the adversary's members fixed at the end of the pool."""

    prepared: runner.Prepared
    others: np.ndarray
    party: np.ndarray
    own: np.ndarray

    @staticmethod
    def of(prepared: runner.Prepared) -> Laboratory:
        scenario, names = prepared.scenario, list(prepared.rows)
        others = np.concatenate([prepared.rows[name] for name in names if name != prepared.adversary])
        holder = {row: k for k, name in enumerate(names) for row in prepared.rows[name]}
        natural = scenario.parties.partition == "natural"
        party = np.array([holder[row] if natural else -1 for row in others])
        mine = prepared.rows[prepared.adversary]
        drawn = rng.generator(scenario.seed, "study/own").permutation(mine)
        return Laboratory(prepared, others, party, drawn[: round(scenario.parties.member_share * len(mine))])

    def federations(self, count: int, known: np.ndarray, purpose: str) -> SignalMatrix:
        """Simulate ``count`` federations on the others' records ``known``; the signals are of all of them."""
        scenario, encoded = self.prepared.scenario, self.prepared.encoded
        share = scenario.parties.member_share
        names = list(self.prepared.rows)
        k = names.index(self.prepared.adversary)
        rows = np.concatenate([self.others[known], self.own])
        membership = shadow.draw_members(
            count,
            [round(share * len(self.prepared.rows[name])) for name in names],
            np.concatenate([self.party[known], np.full(len(self.own), k)]),
            fixed={k: np.arange(len(rows) - len(self.own), len(rows))},
            seed=rng.integer(scenario.seed, purpose, bits=31),
        )
        shape, classes = encoded.features.shape[1:], len(encoded.classes)
        plan = shadow.FederationPlan(
            model=scenario.model,
            input_shape=shape,
            classes=classes,
            rounds=scenario.federation.rounds,
            training=scenario.training,
            parties=tuple(shadow.PartyTraining(size) for size in membership.sizes),
            participants=len(names),
        )
        module = models.build(
            scenario.model, shape, classes, seed=rng.integer(scenario.seed, "initial weights", bits=31)
        )
        initial = {name: value.detach().numpy() for name, value in module.state_dict().items()}
        records = encoded.records(rows), encoded.records(self.others)
        whole, first = (
            shadow.simulate(
                replace(plan, rounds=last),
                initial,
                records[0],
                membership,
                records[1],
                rounds=rounds,
                seed=rng.integer(scenario.seed, purpose, bits=31),
                weight_rounds=rounds[-1:],
            )
            for last, rounds in ((plan.rounds, observed(plan.rounds)), (1, [1]))
        )
        inside = np.full((count, len(self.others)), -1, np.int16)
        inside[:, known] = membership.inside[:, : known.sum()]
        assert whole.weights is not None and first.weights is not None
        return SignalMatrix(
            target=whole.phi[0],
            shadows=whole.phi,
            inside=inside,
            rounds=np.array(whole.rounds),
            labels=records[1].labels,
            party=self.party,
            target_weights=np.concatenate([first.weights[0], whole.weights[0]]),
            shadow_weights=np.concatenate([first.weights, whole.weights], axis=1),
        )


def observed(rounds: int) -> list[int]:
    return sorted({max(1, round(share * rounds)) for share in SHARES})


def games(shadows: SignalMatrix, targets: SignalMatrix, pool: np.ndarray) -> Iterator[tuple]:
    """Yield (matrix, members) of each target, the columns those of the pool."""
    assert targets.shadow_weights is not None
    for phi, weights, member in zip(targets.shadows, targets.shadow_weights, targets.member, strict=True):
        matrix = replace(
            shadows,
            target=phi[:, pool],
            target_weights=weights,
            shadows=shadows.shadows[:, :, pool],
            inside=shadows.inside[:, pool],
            labels=shadows.labels[pool],
            party=shadows.party[pool],
        )
        yield matrix, member[pool]


def table(shadows: SignalMatrix, targets: SignalMatrix, pool: np.ndarray, seed: int) -> Iterator[str]:
    """Yield a line per attack: mean AUC, TPR at 1 and 0.1 % FPR, and their differences from LiRA's."""
    found: list[Scored] = []
    for game, (matrix, member) in enumerate(games(shadows, targets, pool)):
        streams = (rng.generator(seed, f"study/{name}", game=game) for name in ATTACKS)
        scores = [score(matrix, s) for score, s in zip(ATTACKS.values(), streams, strict=True)]
        found.append(Scored(np.array(scores), member))
    for k, name in enumerate(ATTACKS):
        pairs = [Scored(game.scores[[k, 0]], game.member) for game in found]
        stream = rng.generator(seed, f"study/bootstrap/{name}")
        differences = [compare_auc(pairs), *(compare_tpr(pairs, rate, stream) for rate in RATES)]
        cells = [f"{np.mean([delong(pair)[0][0] for pair in pairs]):.3f}"]
        cells += [f"{100 * pooled_tpr(pairs, rate):.1f} %" for rate in RATES]
        cells += [f"{d.value:+.3f} ({d.low:+.3f} … {d.high:+.3f})" for d in differences]
        yield f"| {len(shadows)} | {name} | " + " | ".join(cells) + " |"


def pooled_tpr(pairs: list[Scored], rate: float) -> float:
    """TPR of the first attack at FPR ``rate``, from ranks pooled over games as the comparison does."""
    ranks = np.concatenate([rankdata(pair.scores[0]) / len(pair.member) for pair in pairs])
    member = np.concatenate([pair.member for pair in pairs])
    return tpr_at_fpr(ranks[member], ranks[~member], rate).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shadows", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--games", type=int, default=16)
    parser.add_argument("--open", action="store_true", help="open world")
    options = parser.parse_args()
    laboratory = Laboratory.of(runner.check(load(options.scenario), options.data_dir))
    seed, n = laboratory.prepared.scenario.seed, len(laboratory.others)
    pool = rng.generator(seed, "study/pool").permutation(n) < (n // 2 if options.open else n)
    targets = laboratory.federations(options.games, np.ones(n, bool), "study/targets")
    shadows = laboratory.federations(max(options.shadows), pool, "study/shadows")
    print("| shadows | attack | AUC | TPR at 1 % | at 0.1 % | AUC − LiRA's | TPR at 1 % − | at 0.1 % − |")
    print("|---|---|---|---|---|---|---|---|")
    for count in options.shadows:
        for line in table(shadows.subset(np.arange(count)), targets, pool, seed):
            print(line, flush=True)


if __name__ == "__main__":
    main()
