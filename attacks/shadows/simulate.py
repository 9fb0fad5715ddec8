"""Shadow federations: what an adversary simulates by itself to learn how members and non-members look.

S whole federations with the target's public settings start from the w_0 that the adversary was sent, and
train on records that it draws (`draw_members`). Of each it keeps what the records' outputs were (`Shadows`),
never the models. `simulate` trains them block by block: many at a time where the model allows it
(`fedsim.core.training.stacked`), else one by one; on as many cores as asked for.

Neither the size of a block, nor the number of workers, nor how many more shadows there are changes what a
shadow becomes: not in the last bit, but for modules other than stacks of linear layers, whose rounding may
depend on the block.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from attacks.shadows.cache import Block, read_cache, write_cache
from attacks.shadows.members import Membership
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Streams, poisson_width
from attacks.signals import outputs as signals
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

    from fedsim.core.training.stacked.batches import Stack


VERSION = 5
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


def simulate(
    plan: FederationPlan,
    initial: Weights,
    pool: Records,
    membership: Membership,
    signal_records: Records,
    *,
    rounds: Sequence[int],
    seed: int,
    game: int = 0,
    logit_rounds: Sequence[int] = (),
    weight_rounds: Sequence[int] = (),
    raised: Records | None = None,
    workers: int = 1,
    max_bytes: int = 2**30,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Shadows:
    """Train one shadow federation per row of ``membership`` from w_0 = ``initial`` and observe it.

    pool: what ``membership`` is about; signal_records: the records whose outputs are kept.
    rounds: t of the models w_t to observe, in 0…T.
    logit_rounds, weight_rounds: those of them of which logits, and weights, are kept as well.
    raised: the records whose loss a party moves its answers to increase, where the plan has an ascent.
    workers: cores to use: threads where models are stacked layers, else processes; 1 needs neither.
    max_bytes: roughly what training may take, over all workers, beside the result; each trains one shadow
        at the least.
    cache: folder where results are kept (`cache_folder`), but for a 'module:callable', whose code may change;
        a request that an earlier one covers is read.
    progress: called with the number of shadows done and in all.

    Raises:
        ValueError: ``membership`` has not the plan's party sizes, or ``rounds`` are not increasing in 0…T; an
            ascent without records to raise, or such records without an ascent.
    """
    if membership.sizes != plan.sizes.tolist():
        raise ValueError(
            f"the shadows' parties have {membership.sizes} records, the plan's {plan.sizes.tolist()}"
        )
    if not rounds or list(rounds) != sorted(set(rounds)) or not 0 <= rounds[0] <= rounds[-1] <= plan.rounds:
        raise ValueError(f"rounds {list(rounds)} are not increasing in 0…{plan.rounds}")
    for name, some in (("logit_rounds", logit_rounds), ("weight_rounds", weight_rounds)):
        if list(some) != [t for t in rounds if t in some]:
            raise ValueError(f"{name} {list(some)} are not increasing in {list(rounds)}")
    if (plan.ascent is None) != (raised is None):
        raise ValueError("an ascent needs records that it raises, and they need an ascent")
    job = _Job(
        plan,
        dict(initial),
        pool,
        signal_records,
        tuple(rounds),
        seed,
        game,
        tuple(logit_rounds),
        tuple(weight_rounds),
        raised,
    )
    # What a module of the user's own computes is written in a file that may change.
    own_module = ":" in plan.model.name
    file = cache / f"{job.key(membership)}.safetensors" if cache and not own_module else None
    kept = read_cache(file, membership) if file else {}
    done = len(kept.get("phi", ()))
    if done < len(membership):
        kept = _train(job, membership, kept, workers, max_bytes, progress)
        if file:
            write_cache(file, membership, kept)
    elif progress:
        progress(len(membership), len(membership))
    return Shadows(tuple(rounds), kept["phi"], kept.get("logits"), kept.get("weights"), membership)


@dataclass(frozen=True, eq=False)
class _Job:
    """What all blocks of a request share."""

    plan: FederationPlan
    initial: Weights
    pool: Records
    signal_records: Records
    rounds: tuple[int, ...]
    seed: int
    game: int
    logit_rounds: tuple[int, ...]
    weight_rounds: tuple[int, ...]
    raised: Records | None

    def key(self, membership: Membership) -> str:
        """Return a hash of all that decides the result: what is shared, and the first shadow's members."""
        plan = TypeAdapter(FederationPlan).dump_python(self.plan, mode="json")
        kept = [self.rounds, self.logit_rounds, self.weight_rounds]
        settings = [VERSION, plan, *kept, self.seed, self.game]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        named = {
            **self.initial,
            "pool": self.pool.features, "pool labels": self.pool.labels,
            "signal": self.signal_records.features, "signal labels": self.signal_records.labels,
            "members": membership.members[0],
        }  # fmt: skip
        if self.raised is not None:
            named |= {"raised": self.raised.features, "raised labels": self.raised.labels}
        for name, array in named.items():
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]


def _train(
    job: _Job,
    membership: Membership,
    kept: Block,
    workers: int,
    max_bytes: int,
    progress: Progress | None,
) -> Block:
    """Train the shadows that ``kept`` does not have; return all of them."""
    done, total = len(kept.get("phi", ())), len(membership)
    size = block_size(job.plan, len(job.signal_records), total - done, workers, max_bytes)
    starts = range(done, total, size)
    blocks: dict[int, Block] = {}
    for start, block in _run(job, membership.members, starts, size, min(workers, len(starts))):
        blocks[start] = block
        if progress:
            progress(done + sum(len(b["phi"]) for b in blocks.values()), total)
    parts = [kept] * bool(kept) + [blocks[start] for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[-1]}


def _run(
    job: _Job, members: np.ndarray, starts: Sequence[int], size: int, workers: int
) -> Iterator[tuple[int, Block]]:
    """Yield (start, block) as blocks are finished, ``workers`` of them at a time on one core each."""
    from fedsim.core.training.stacked.batches import single_thread

    stop = threading.Event()
    with single_thread(), contextlib.ExitStack() as on_exit:
        if workers == 1:
            for start in starts:
                yield start, _run_block(job, start, members[start : start + size])
            return
        stack = _stack(job.plan)
        threads = stack is not None and stack.rounds_alike
        executor = _threads(workers) if threads else _processes(workers, job)
        on_exit.callback(executor.shutdown, cancel_futures=True)
        on_exit.callback(stop.set)
        waiting = {}
        for start in starts:
            part = members[start : start + size]
            future = (
                executor.submit(_run_block, job, start, part, stop.is_set)
                if threads
                else executor.submit(_run_in_worker, start, part)
            )
            waiting[future] = start
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _threads(workers: int) -> Executor:
    """Stacked layers spend their time in large operations, which release the interpreter's lock."""
    import torch

    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def _processes(workers: int, job: _Job) -> Executor:
    """Other modules spend theirs in Python. Spawned, since a forked torch may hang."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=(job,))


_worker_job: _Job | None = None


def _start_worker(job: _Job) -> None:
    import torch

    global _worker_job
    _worker_job = job
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback


def _run_in_worker(start: int, members: np.ndarray) -> Block:
    assert _worker_job is not None
    return _run_block(_worker_job, start, members)


def _run_block(job: _Job, start: int, members: np.ndarray, stop: Callable[[], bool] = lambda: False) -> Block:
    """Train the shadows ``start``, ``start`` + 1, … with these members.

    stop: asked before every round of stacked models whether to give up
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
                job.raised,
            )  # fmt: skip
    else:
        pools = stack.pool(job.pool), stack.pool(job.signal_records)
        raised = None if job.raised is None else stack.pool(job.raised)
        see, rounds = seen.by(0), job.rounds
        train_block(plan, stack, job.initial, pools[0], members, pools[1], rounds, streams, see, stop, raised)
    return seen.block


SIGNAL_LOGITS = 2**18
"""Logits that are turned into signals at a time."""


class _Seen:
    """What is kept of a block: filled round by round."""

    def __init__(self, job: _Job, shadows: int) -> None:
        self._job = job
        shape = (shadows, len(job.rounds), len(job.signal_records))
        self.block: Block = {"phi": np.empty(shape, np.float32)}
        if job.logit_rounds:
            asked = (len(job.logit_rounds), len(job.signal_records), job.plan.classes)
            self.block["logits"] = np.empty((shadows, *asked), np.float32)
        if job.weight_rounds:
            size = sum(array.size for array in job.initial.values())
            self.block["weights"] = np.empty((shadows, len(job.weight_rounds), size), np.float32)

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
                phi = signals.scaled_logit(flat, np.tile(labels, len(part)))
                self.block["phi"][first + part, place] = phi.reshape(len(part), -1)
            if t in self._job.logit_rounds:
                self.block["logits"][s, self._job.logit_rounds.index(t)] = logits
            if t in self._job.weight_rounds:
                flat = np.concatenate([w.numpy().reshape(len(w), -1) for w in weights.values()], axis=1)
                kept = self.block["weights"][first : first + len(flat)]
                kept[:, self._job.weight_rounds.index(t)] = flat

        return observe


def _stack(plan: FederationPlan) -> Stack | None:
    from fedsim.core.models import zoo
    from fedsim.core.training.stacked.stack import stack_of

    stack = stack_of(zoo.build(plan.model, plan.input_shape, plan.classes), plan.input_shape, plan.classes)
    drops = any(party.defence.dropout for party in plan.parties)
    # Of a module's hidden units only the module itself knows: it drops them by torch's own stream.
    return None if stack is not None and drops and not stack.hidden_widths else stack


BLOCK_BYTES = 4 * 2**20
"""Bytes of parameters in a block, beyond which steps get slower, for want of cache (measured)."""
BLOCK_MODELS = 1280
"""Models in a block, beyond which the fixed cost of a step is spread thin enough (measured)."""
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
    quick = min(BLOCK_MODELS, BLOCK_BYTES // (4 * stack.parameters)) // plan.participants
    fit = max_bytes // bytes_per_shadow(plan, stack, records)
    if not stack.rounds_alike:
        return max(1, min(quick, fit // 8, MODULE_BLOCK))
    largest = max(1, min(quick, fit // workers))
    turns = -(-shadows // (largest * workers))
    return -(-shadows // (turns * workers))  # blocks of one size, rather than a small last one


def bytes_per_shadow(plan: FederationPlan, stack: Stack, records: int) -> int:
    """Return an upper estimate of what training one more shadow takes, in bytes."""
    from fedsim.core.training.stacked.batches import SIGNAL_ROWS

    training = plan.training
    defences = [party.defence for party in plan.parties]
    copies = 2 + 3 * (training.optimizer == "adam") + (training.momentum > 0) + (plan.proximal_mu > 0)
    copies += any(each.patience for each in defences) + 2 * any(each.l1 or each.l2 for each in defences)
    copies += 12 * any(each.changes_update for each in defences)  # float64, sorted
    poisson = [poisson_width(plan.parties[k].size, plan.dp(k).sample_rate) for k in plan.private]
    width = max(training.batch, *poisson, 1)
    step = stack.floats(width, bool(plan.private))
    step += 3 * width * sum(stack.hidden_widths) * any(each.dropout for each in defences)
    step += 4 * width * plan.classes * any(each.mixup or each.label_smoothing for each in defences)
    # Positions, rows, labels and weights of a round's batches.
    rows = max(plan.steps(k) for k in range(len(plan.parties))) * width * 6
    a_round = plan.participants * (copies * stack.parameters + step + rows)
    observed = stack.floats(min(records, SIGNAL_ROWS), False) + 6 * records * plan.classes
    return 4 * (a_round + 6 * stack.parameters + observed)
