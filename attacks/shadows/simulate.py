"""Shadow federations: what an adversary simulates by itself to learn how members and non-members look.

S whole federations with the target's public settings start from the w_0 that the adversary was sent, and
train on records that it draws (`draw_members`). Of each it keeps what the records' outputs were (`Shadows`),
never the models. `train_shadows` trains them block by block: many at a time where the model allows it
(`attacks.shadows.paths`), else one by one; on as many cores as asked for.

Neither the size of a block, nor the number of workers, nor how many more shadows there are changes what a
shadow becomes: not in the last bit, but for modules other than stacks of linear layers, whose rounding may
depend on the block.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from attacks.shadows.cache import Block, Place, cache_name, read_cache, write_cache
from attacks.shadows.members import Membership
from attacks.shadows.paths import quick_path
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Streams, poisson_width
from attacks.signals import outputs
from fedsim.core.cluster import Cluster, on_cluster
from fedsim.core.data.records import Records
from fedsim.core.errors import FedsimError
from fedsim.core.parallel import Outcome, TaskLate, WorkerDied, Workers, in_threads

if TYPE_CHECKING:
    import torch

    from fedsim.core.training.stacked.batches import Stack


VERSION = 7
"""Part of a cache's key: to be raised whenever the same request would give other numbers."""

Weights = Mapping[str, np.ndarray]
Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Shadows:
    """What is kept of S shadow federations, observed at w_t for each t of ``rounds``.

    phi: (S, rounds, n) float32, the scaled logit of every signal record
    logits: (S, K, n, classes) float32, at the K rounds asked for
    weights: (S, K, p) float32, w_t in the order of the module's state at the K rounds asked for
    membership: who was in which shadow
    """

    rounds: tuple[int, ...]
    phi: np.ndarray
    logits: np.ndarray | None
    weights: np.ndarray | None
    membership: Membership


def flat_weights(weights: Weights) -> np.ndarray:
    """Return a model's weights as `Shadows.weights` has them, (p,) float32."""
    return np.concatenate([np.ravel(array) for array in weights.values()]).astype(np.float32)


@dataclass(frozen=True)
class Laboratory:
    """What simulations may cost, and where they are kept; none of it changes a result.

    workers: cores to use: threads where models are stacked layers, else processes; 1 needs neither
    cache: folder or store of earlier simulations (`cache.cache_folder`), or None; a request that one of them
        covers is read. Not for a 'module:callable', whose code may change.
    progress: called with shadows done and in all, the first time when the work begins; those that are trained
        together count as done in proportion to their rounds. Threads call it, one at a time
    max_bytes: roughly what training may take, over all workers, beside the result; each worker trains one
        shadow at the least; on a cluster, over all workers of one machine
    cluster: address of a Ray cluster, whose cores are used instead of ``workers``; None for this machine
    """

    workers: int = 1
    cache: Place | None = None
    progress: Progress | None = None
    max_bytes: int = 2**30
    cluster: str | None = None


@dataclass(frozen=True, eq=False)
class ShadowRequest:
    """Which shadows to train, and what to observe of them: all that decides the result.

    initial: w_0, from which every shadow starts
    pool: the records that ``membership`` is about; signal_records: those whose outputs are kept
    rounds: t of the models w_t to observe, in 0…T, increasing
    logit_rounds, weight_rounds: those of them of which logits, and weights, are kept as well
    raised: the records whose loss a party's answers are moved to raise, where the plan has an ascent
    person: (records,) int, whose each record of ``pool`` is, where a party clips by person

    Raises:
        ValueError: ``membership`` has not the plan's party sizes, or ``rounds`` are not increasing in 0…T; an
            ascent without records to raise, or such records without an ascent; a party clips by person, and
            nobody says whose the records are.
    """

    plan: FederationPlan
    initial: Weights
    pool: Records
    membership: Membership
    signal_records: Records
    rounds: tuple[int, ...]
    seed: int
    game: int = 0
    logit_rounds: tuple[int, ...] = ()
    weight_rounds: tuple[int, ...] = ()
    raised: Records | None = None
    person: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes, rounds, last = self.plan.sizes.tolist(), list(self.rounds), self.plan.rounds
        if self.membership.sizes != sizes:
            raise ValueError(f"the shadows' parties have {self.membership.sizes} records, the plan's {sizes}")
        if not rounds or rounds != sorted(set(rounds)) or not 0 <= rounds[0] <= rounds[-1] <= last:
            raise ValueError(f"rounds {rounds} are not increasing in 0…{last}")
        for name, chosen in (("logit_rounds", self.logit_rounds), ("weight_rounds", self.weight_rounds)):
            if list(chosen) != [t for t in rounds if t in chosen]:
                raise ValueError(f"{name} {list(chosen)} are not increasing in {rounds}")
        if (self.plan.ascent is None) != (self.raised is None):
            raise ValueError("an ascent needs records that it raises, and they need an ascent")
        if self.plan.by_person and self.person is None:
            raise ValueError("a party clips by person, and nobody says whose the records are")

    def key(self) -> str:
        """Return a hash of all that decides the result: what is shared, and the first shadow's members."""
        plan = TypeAdapter(FederationPlan).dump_python(self.plan, mode="json")
        observed = [self.rounds, self.logit_rounds, self.weight_rounds]
        settings = [VERSION, path_of(self.plan), plan, *observed, self.seed, self.game]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        named = {
            **self.initial,
            "pool": self.pool.features, "pool labels": self.pool.labels,
            "signal": self.signal_records.features, "signal labels": self.signal_records.labels,
            "members": self.membership.members[0],
        }  # fmt: skip
        if self.raised is not None:
            named |= {"raised": self.raised.features, "raised labels": self.raised.labels}
        if self.person is not None:
            named["person"] = self.person
        for name, array in named.items():
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def train_shadows(request: ShadowRequest, laboratory: Laboratory | None = None) -> Shadows:
    """Train one shadow federation per row of the membership, from w_0, and observe it.

    Raises:
        FedsimError: a worker's process ended, as where memory runs out; on a cluster, again and again.
        InputError: there is no cluster at the address.
    """
    laboratory = laboratory or Laboratory()
    total = len(request.membership)
    # What a module of the user's own computes is written in a file that may change.
    own_module = ":" in request.plan.model.name
    file = laboratory.cache / cache_name(request.key()) if laboratory.cache and not own_module else None
    arrays = read_cache(file, request.membership, _shapes(request)) if file else {}
    if len(arrays.get("phi", ())) < total:
        arrays = _train_missing(request, arrays, laboratory)
        if file:
            write_cache(file, request.membership, arrays)
    elif laboratory.progress:
        laboratory.progress(total, total)
    logits, weights = arrays.get("logits"), arrays.get("weights")
    return Shadows(request.rounds, arrays["phi"], logits, weights, request.membership)


def _shapes(request: ShadowRequest) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of one shadow, by field of `Shadows`."""
    n, plan = len(request.signal_records), request.plan
    shapes: dict[str, tuple[int, ...]] = {"phi": (len(request.rounds), n)}
    if request.logit_rounds:
        shapes["logits"] = (len(request.logit_rounds), n, plan.classes)
    if request.weight_rounds:
        size = sum(array.size for array in request.initial.values())
        shapes["weights"] = (len(request.weight_rounds), size)
    return shapes


def _train_missing(request: ShadowRequest, cached: Block, laboratory: Laboratory) -> Block:
    """Train the shadows that ``cached`` does not have; return all of them."""
    done, total = len(cached.get("phi", ())), len(request.membership)
    records, blocks = len(request.signal_records), dict[int, Block]()
    with on_cluster(laboratory.cluster) as cluster:
        workers, max_bytes = laboratory.workers, laboratory.max_bytes
        if cluster:
            workers, max_bytes = cluster.cores, max_bytes * cluster.machines
        size = block_size(request.plan, records, total - done, workers, max_bytes)
        starts = range(done, total, size)
        pace = _Pace(request, done, laboratory.progress)
        run = _run(request, starts, size, min(workers, len(starts)), pace, cluster)
        with contextlib.closing(run):  # before the cluster is left, however this ends
            for start, block in run:
                blocks[start] = block
                pace.finished(start, len(block["phi"]))
    parts = [cached] * bool(cached) + [blocks[start] for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[-1]}


class _Pace:
    """Adds up how far the blocks of a request are, and tells ``progress``."""

    def __init__(self, request: ShadowRequest, done: int, progress: Progress | None) -> None:
        self._rounds, self._total, self._before = request.plan.rounds, len(request.membership), done
        self._progress = progress
        self._done: dict[int, int] = {}  # shadows, by their block's first
        self._one_at_a_time = threading.Lock()
        self._tell()

    def at(self, start: int, shadows: int, t: int) -> None:
        """Note that a block's models are w_t; w_T is not the end: its outputs are still to be asked."""
        with self._one_at_a_time:
            self._done[start] = shadows * t // (self._rounds + 1)
            self._tell()

    def finished(self, start: int, shadows: int) -> None:
        with self._one_at_a_time:
            self._done[start] = shadows
            self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(self._before + sum(self._done.values()), self._total)


def _run(
    request: ShadowRequest,
    starts: Sequence[int],
    size: int,
    workers: int,
    pace: _Pace,
    cluster: Cluster | None,
) -> Generator[tuple[int, Block]]:
    """Yield (start, block) as blocks are finished, ``workers`` of them at a time on one core each."""
    from fedsim.core.training.stacked.batches import single_thread

    members = request.membership.members
    blocks = [(start, members[start : start + size]) for start in starts]
    with single_thread(), contextlib.ExitStack() as on_exit:
        if cluster:
            outcomes = cluster.run(_run_alone, blocks, shared=(request,))
        elif workers == 1:
            for start, part in blocks:
                yield start, _run_block(request, start, part, pace)
            return
        elif _in_threads(request.plan):
            # Stacked layers spend their time in large operations, which release the interpreter's lock.
            outcomes = in_threads(_run_block, [(request, *block, pace) for block in blocks], workers)
        else:
            # Other modules spend theirs in Python.
            pool = on_exit.enter_context(Workers(workers, functools.partial(_start_worker, request)))
            outcomes = pool.run(_run_in_worker, blocks)
        on_exit.enter_context(contextlib.closing(outcomes))
        for outcome in outcomes:
            if outcome.state != "started":
                yield starts[outcome.number], _block_of(outcome)


def _in_threads(plan: FederationPlan) -> bool:
    stack = _stack(plan)
    return stack is not None and stack.rounds_alike


def _block_of(outcome: Outcome) -> Block:
    try:
        block: Block = outcome.result()
    except (WorkerDied, TaskLate) as error:
        advice = "use fewer --workers, or less adversary.memory"
        raise FedsimError(f"shadow federations could not be trained: {error}; {advice}") from error
    return block


_worker_request: ShadowRequest | None = None


def _start_worker(request: ShadowRequest) -> None:
    import torch

    global _worker_request
    _worker_request = request
    torch.set_num_threads(1)


def _run_in_worker(start: int, members: np.ndarray) -> Block:
    assert _worker_request is not None
    return _run_block(_worker_request, start, members)


def _run_alone(request: ShadowRequest, start: int, members: np.ndarray) -> Block:
    """Train a block in a process of a cluster."""
    from fedsim.core.training.stacked.batches import single_thread

    with single_thread():
        return _run_block(request, start, members)


def _run_block(
    job: ShadowRequest,
    start: int,
    members: np.ndarray,
    pace: _Pace | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Block:
    """Train the shadows ``start``, ``start`` + 1, … with these members.

    pace: told of every round of stacked models
    stop: asked at every round of stacked models whether to give up
    """
    from attacks.shadows.block import train_block
    from attacks.shadows.plain import train_one

    plan, shadows = job.plan, range(len(members))
    streams = [Streams(job.seed, job.game, start + s) for s in shadows]
    seen = _Seen(job, len(members))
    stack = _stack(plan)
    if stack is None:
        for s, see in enumerate(map(seen.by, shadows)):
            train_one(
                plan, job.initial, job.pool, members[s], job.signal_records, job.rounds, streams[s], see,
                job.raised, job.person,
            )  # fmt: skip
    else:
        pools = stack.pool(job.pool), stack.pool(job.signal_records)
        raised = None if job.raised is None else stack.pool(job.raised)
        see, rounds = seen.by(0), job.rounds

        def gives_up(t: int) -> bool:
            if pace:
                pace.at(start, len(members), t)
            return stop()

        train_block(
            plan, stack, job.initial, pools[0], members, pools[1], rounds, streams, see, gives_up, raised
        )  # fmt: skip
    return seen.block


def path_of(plan: FederationPlan) -> str:
    """Return how shadows of this plan are trained: 'fused', 'stacked' (`quick_path`) or 'one by one'."""
    stack = _stack(plan)
    return "one by one" if stack is None else quick_path(plan, stack)


SIGNAL_LOGITS = 2**18
"""Logits that are turned into signals at a time."""


class _Seen:
    """What is kept of a block: filled round by round."""

    def __init__(self, job: ShadowRequest, shadows: int) -> None:
        self._job = job
        self.block: Block = {
            name: np.empty((shadows, *shape), np.float32) for name, shape in _shapes(job).items()
        }

    def by(self, first: int) -> Callable[[int, torch.Tensor, Mapping[str, torch.Tensor]], None]:
        """Return what takes t, the logits (S, n, classes) and w_t of the shadows from ``first`` on."""

        def observe(t: int, answers: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> None:
            place = self._job.rounds.index(t)
            labels = self._job.signal_records.labels
            logits, s = answers.numpy(), slice(first, first + len(answers))
            # float64 takes twice the memory of all the logits: not of many shadows at a time.
            many = max(1, SIGNAL_LOGITS // max(1, logits[0].size))
            for part in np.split(np.arange(len(logits)), range(many, len(logits), many)):
                flat = logits[part].reshape(-1, logits.shape[2]).astype(np.float64)
                phi = outputs.scaled_logit(flat, np.tile(labels, len(part)))
                self.block["phi"][first + part, place] = phi.reshape(len(part), -1)
            if t in self._job.logit_rounds:
                self.block["logits"][s, self._job.logit_rounds.index(t)] = logits
            if t in self._job.weight_rounds:
                flat = np.concatenate([w.numpy().reshape(len(w), -1) for w in weights.values()], axis=1)
                weight_rows = self.block["weights"][first : first + len(flat)]
                weight_rows[:, self._job.weight_rounds.index(t)] = flat

        return observe


def _stack(plan: FederationPlan) -> Stack | None:
    from fedsim.core.models import zoo
    from fedsim.core.training.stacked.stack import stack_of

    stack = stack_of(zoo.build(plan.model, plan.input_shape, plan.classes), plan.input_shape, plan.classes)
    if plan.by_person:
        return None  # a person's gradients are averaged before they are clipped, which no stack does
    defences = [party.defence for party in plan.parties]
    if stack is None or any(defence.distil or defence.shipped for defence in defences):
        return None  # teachers and students are trained one after the other, as shipped filters are applied
    # Of a module's hidden units only the module itself knows: it drops them by torch's own stream.
    drops = any(defence.dropout for defence in defences) and not stack.hidden_widths
    shapes = any(defence.shapes_slope for defence in defences) and not stack.rounds_alike
    return None if drops or shapes else stack


BLOCK_BYTES = 4 * 2**20
"""Bytes of parameters in a block, beyond which steps get slower, for want of cache (measured)."""
BLOCK_MODELS = 1280
"""Models in a block, beyond which the fixed cost of a step is spread thin enough (measured)."""
STEP_BYTES = 32 * 2**20
"""Bytes of a block's step, inputs and errors of all layers: more are no quicker (measured)."""
MODULE_BLOCK = 4
"""Shadows of other modules in a block: more are no quicker alone, and slow each other down on four cores,
whose activations no longer fit into the cache (measured)."""


def block_size(plan: FederationPlan, records: int, shadows: int, workers: int, max_bytes: int) -> int:
    """Return how many shadows are trained together, at least 1. records: whose outputs are observed.

    Of stacked layers as many as are quickest, fit and leave something to do for every worker; of other
    modules, whose rounding may depend on it, a number that does not depend on the number of workers.
    """
    stack = _stack(plan)
    if stack is None:
        return 1
    quick = quick_block(plan, stack) // plan.participants
    fit = max_bytes // bytes_per_shadow(plan, stack, records)
    if not stack.rounds_alike:
        return max(1, min(quick, fit // 8, MODULE_BLOCK))
    largest = max(1, min(quick, fit // workers))
    turns = -(-shadows // (largest * workers))
    return -(-shadows // (turns * workers))  # blocks of one size, rather than a small last one


def quick_block(plan: FederationPlan, stack: Stack) -> int:
    """Return how many models are trained together the quickest, at least 1."""
    step = stack.floats(_width(plan), bool(plan.private))
    return max(1, min(BLOCK_MODELS, BLOCK_BYTES // (4 * stack.parameters), STEP_BYTES // (4 * step)))


def _width(plan: FederationPlan) -> int:
    """Return the records of a step at most, or nearly."""
    poisson = [poisson_width(plan.parties[k].size, plan.dp(k).sample_rate) for k in plan.private]
    return max(plan.training.batch if plan.plain else 1, *poisson, 1)


def bytes_per_shadow(plan: FederationPlan, stack: Stack, records: int) -> int:
    """Return an upper estimate of what training one more shadow takes, in bytes."""
    from fedsim.core.training.stacked.batches import SIGNAL_ROWS

    trainings = [plan.training_of(k) for k in range(len(plan.parties))]
    defences = [party.defence for party in plan.parties]
    copies = 2 + 3 * any(training.optimizer == "adam" for training in trainings) + (plan.proximal_mu > 0)
    copies += any(training.momentum for training in trainings)
    copies += any(defence.patience for defence in defences) + 2 * any(
        defence.l1 or defence.l2 for defence in defences
    )
    copies += 12 * any(defence.changes_update for defence in defences)  # float64, sorted
    width = _width(plan)
    step = stack.floats(width, bool(plan.private))
    step += 3 * width * sum(stack.hidden_widths) * any(defence.dropout for defence in defences)
    step += 4 * width * plan.classes * any(defence.mixup or defence.label_smoothing for defence in defences)
    # Positions, rows, labels and weights of a round's batches.
    rows = max(plan.steps(k) for k in range(len(plan.parties))) * width * 6
    a_round = plan.participants * (copies * stack.parameters + step + rows)
    observed = stack.floats(min(records, SIGNAL_ROWS), False) + 6 * records * plan.classes
    return 4 * (a_round + 6 * stack.parameters + observed)
