"""How much joint inference finds, part by part, against LiRA on the same shadows and games.

    python experiments/studies/joint.py --data-dir DATA                # makes experiments/results/joint.md
    python experiments/studies/joint.py --only heart --shadows 64 256 1024

The games share w_0 and the adversary's own records, so that one set of shadows serves all of them; they
differ in who the others' members are. Open world: the adversary owns a random half of the others' records,
draws its shadows from these alone, and half of the target's members are unknown to it. Beside S whole shadows
there are 8 S of the first two rounds, as in a run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from scipy.stats import rankdata

from attacks.matrix import lira
from attacks.matrix.joint import parts, stacking
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.shadows import members
from attacks.shadows.budget import EARLY_SHADOWS
from attacks.shadows.members import Membership
from attacks.shadows.plan import FederationPlan, PartyTraining
from attacks.shadows.simulate import ShadowRequest, train_shadows
from attacks.shadows.suite import EARLY, OBSERVED_ROUNDS
from fedsim.core import rng
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.reading import load
from fedsim.evaluation.comparison import Scored, compare_auc, compare_tpr, delong
from fedsim.evaluation.estimates import tpr_at_fpr
from fedsim.runs import prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
NAMES = ("hospitals", "heart")
RATES = (0.01, 0.001)

Score = Callable[[SignalMatrix, np.random.Generator], np.ndarray]


def of_first_rounds(matrix: SignalMatrix, stream: np.random.Generator) -> np.ndarray:
    assert matrix.early is not None
    return parts.first_update(matrix.early, stream)


def of_whole_runs(matrix: SignalMatrix, stream: np.random.Generator) -> np.ndarray:
    return stacking.score(replace(matrix, early=None), stream)


ATTACKS: dict[str, Score] = {
    "LiRA": lira.online,
    "factor-adjusted LiRA": parts.factor_adjusted_lira,
    "ridge decoding": parts.ridge_decoding,
    "weight decoding": parts.weight_decoding,
    "these together": of_whole_runs,
    "first update": of_first_rounds,
    "joint": stacking.score,
}


@dataclass(frozen=True)
class Laboratory:
    """A prepared scenario, with the adversary's members fixed at the end of the pool."""

    prepared: prepare.Prepared
    others: np.ndarray
    party: np.ndarray
    own: np.ndarray

    @staticmethod
    def of(prepared: prepare.Prepared) -> Laboratory:
        scenario, names = prepared.scenario, list(prepared.rows)
        others = np.concatenate([prepared.rows[name] for name in names if name != prepared.adversary])
        holder = {row: k for k, name in enumerate(names) for row in prepared.rows[name]}
        natural = scenario.parties.partition == "natural"
        party = np.array([holder[row] if natural else -1 for row in others])
        mine = prepared.rows[prepared.adversary]
        drawn = rng.generator(scenario.seed, "study/own").permutation(mine)
        return Laboratory(prepared, others, party, drawn[: round(scenario.parties.member_share * len(mine))])

    def federations(self, count: int, known: np.ndarray, purpose: str, *, early: bool) -> SignalMatrix:
        """Simulate ``count`` federations on the others' records ``known``; the signals are of all of them.

        early: of the first rounds alone; the first of more such federations are the same as of fewer
        """
        membership, pool = self._drawn(count, known, purpose)
        scenario, encoded = self.prepared.scenario, self.prepared.encoded
        seed, last = scenario.seed, scenario.federation.rounds
        shape, classes = encoded.features.shape[1:], len(encoded.classes)
        module = zoo.build(scenario.model, shape, classes, seed=rng.integer(seed, "initial weights", bits=31))
        rounds = list(range(1, EARLY + 1)) if early else observed(last)
        plan = FederationPlan(
            model=scenario.model,
            input_shape=shape,
            classes=classes,
            rounds=rounds[-1],
            training=scenario.training,
            parties=tuple(PartyTraining(size) for size in membership.sizes),
            participants=len(self.prepared.rows),
        )
        asked = encoded.records(self.others)
        found = train_shadows(
            ShadowRequest(
                plan, weights_of(module), encoded.records(pool), membership, asked, tuple(rounds),
                seed=rng.integer(seed, purpose, bits=31), weight_rounds=tuple(rounds[-1:]),
            )
        )  # fmt: skip
        inside = np.full((count, len(self.others)), -1, np.int16)
        inside[:, known] = membership.inside[:, : known.sum()]
        assert found.weights is not None
        return SignalMatrix(
            target=found.phi[0],
            shadows=found.phi,
            inside=inside,
            rounds=np.array(rounds),
            labels=asked.labels,
            party=self.party,
            target_weights=found.weights[0],
            shadow_weights=found.weights,
        )

    def _drawn(self, count: int, known: np.ndarray, purpose: str) -> tuple[Membership, np.ndarray]:
        """Return who is a member where, and the rows of the records that this is about."""
        scenario, names = self.prepared.scenario, list(self.prepared.rows)
        k, share = names.index(self.prepared.adversary), scenario.parties.member_share
        rows = np.concatenate([self.others[known], self.own])
        membership = members.draw_members(
            count,
            [round(share * len(self.prepared.rows[name])) for name in names],
            np.concatenate([self.party[known], np.full(len(self.own), k)]),
            fixed={k: np.arange(len(rows) - len(self.own), len(rows))},
            seed=rng.integer(scenario.seed, purpose, bits=31),
        )
        return membership, rows


def observed(rounds: int) -> list[int]:
    return sorted({round(t) for t in np.linspace(rounds / OBSERVED_ROUNDS, rounds, OBSERVED_ROUNDS)})


def games(shadows: SignalMatrix, targets: SignalMatrix, pool: np.ndarray) -> Iterator[SignalMatrix]:
    """Yield the shadows with each of the targets, the columns those of the pool."""
    assert targets.shadow_weights is not None
    for phi, weights in zip(targets.shadows, targets.shadow_weights, strict=True):
        yield replace(
            shadows,
            target=phi[:, pool],
            target_weights=weights,
            shadows=shadows.shadows[:, :, pool],
            inside=shadows.inside[:, pool],
            labels=shadows.labels[pool],
            party=shadows.party[pool],
        )


Both = tuple[SignalMatrix, SignalMatrix]
"""Whole federations, and their first rounds."""


def scored(shadows: Both, targets: Both, pool: np.ndarray, seed: int) -> Iterator[Scored]:
    """Yield every game with its scores by all attacks."""
    of_game = (games(of, asked, pool) for of, asked in zip(shadows, targets, strict=True))
    for game, (whole, early) in enumerate(zip(*of_game, strict=True)):
        matrix = replace(whole, early=early)
        streams = (rng.generator(seed, f"study/{name}", game=game) for name in ATTACKS)
        scores = [score(matrix, s) for score, s in zip(ATTACKS.values(), streams, strict=True)]
        yield Scored(np.array(scores), targets[0].member[game, pool])


def table(found: list[Scored], shadows: int, seed: int) -> Iterator[str]:
    """Yield a line per attack: mean AUC, TPR at 1 and 0.1 % FPR, and their differences from LiRA's."""
    for k, name in enumerate(ATTACKS):
        pairs = [Scored(game.scores[[k, 0]], game.member) for game in found]
        stream = rng.generator(seed, f"study/bootstrap/{name}")
        cells = [f"{np.mean([delong(pair)[0][0] for pair in pairs]):.3f}"]
        cells += [f"{100 * pooled_tpr(pairs, rate):.1f} %" for rate in RATES]
        if k:
            auc = compare_auc(pairs)
            cells += [f"{auc.value:+.3f} ({auc.low:+.3f} to {auc.high:+.3f})"]
            points = [compare_tpr(pairs, rate, stream) for rate in RATES]
            cells += [f"{100 * p.value:+.1f} ({100 * p.low:+.1f} to {100 * p.high:+.1f})" for p in points]
        yield f"| {shadows} | {name} | " + " | ".join(cells + [""] * (6 - len(cells))) + " |"


def pooled_tpr(pairs: list[Scored], rate: float) -> float:
    """TPR of the first attack at FPR ``rate``, from ranks pooled over games as the comparison does."""
    ranks = np.concatenate([rankdata(pair.scores[0]) / len(pair.member) for pair in pairs])
    member = np.concatenate([pair.member for pair in pairs])
    return tpr_at_fpr(ranks[member], ranks[~member], rate).value


def section(name: str, world: str, data_dir: Path | None, shadows: list[int], repeats: int) -> Iterator[str]:
    laboratory = Laboratory.of(prepare.check(load(EXPERIMENTS / f"{name}.toml"), data_dir))
    seed, n = laboratory.prepared.scenario.seed, len(laboratory.others)
    pool = rng.generator(seed, "study/pool").permutation(n) < (n // 2 if world == "open" else n)
    everyone, most = np.ones(n, bool), max(shadows)
    targets = tuple(
        laboratory.federations(repeats, everyone, "study/targets", early=early) for early in (False, True)
    )
    assert np.array_equal(targets[0].member, targets[1].member)
    whole = laboratory.federations(most, pool, "study/shadows", early=False)
    early = laboratory.federations(EARLY_SHADOWS * most, pool, "study/shadows", early=True)
    yield from (
        f"## {name}, {world} world", "", f"{repeats} games, {int(pool.sum())} candidates in each.", "",
        "| shadows | attack | AUC | TPR at 1 % FPR | at 0.1 % | AUC above LiRA's "
        "| points above LiRA at 1 % | at 0.1 % |", "|---|---|---|---|---|---|---|---|",
    )  # fmt: skip
    for count in shadows:
        some = whole.subset(np.arange(count)), early.subset(np.arange(EARLY_SHADOWS * count))
        yield from table(list(scored(some, targets, pool, seed)), count, seed)
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shadows", type=int, nargs="+", default=[256])
    parser.add_argument("--games", type=int, default=12, help="12 or more, for rates of 0.1 %%")
    parser.add_argument("--table", type=Path, default=EXPERIMENTS / "results" / "joint.md")
    options = parser.parse_args()
    lines = [
        "# Joint inference, part by part",
        "",
        "On the same shadows and games, from a participant's view. Closed world: every member is among the",
        "records that the adversary owns; open world: half of them are not. Intervals are 95 %. Made by",
        "`python experiments/studies/joint.py`.",
        "",
    ]
    for name in options.only:
        for world in ("closed", "open"):
            for line in section(name, world, options.data_dir, options.shadows, options.games):
                print(line, flush=True)
                lines.append(line)
    options.table.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
