"""One shadow federation, one party after another and one record after another, by torch.nn, torch.optim and
autograd: slow, and obviously what the papers say. It shares with the shadows their random numbers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks import deviation
from attacks.shadows.aggregation import server
from attacks.shadows.block import Observe
from attacks.shadows.defences import draw_heldout
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Schedule, Streams, draw_schedule
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.layers import dropout, hidden_units, hooked
from fedsim.core.models.weights import exchanged, load_weights
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training.stacked.batches import Stack
from fedsim.core.training.stacked.clipping import noise_source
from fedsim.core.training.stacked.noise import uniform
from fedsim.core.training.stacked.stack import layout_of
from support.defences import defended_loss

Data = tuple[Tensor, Tensor]


def train_one(
    plan: FederationPlan,
    initial: Mapping[str, np.ndarray],
    pool: Records,
    members: np.ndarray,
    signal_records: Records,
    rounds: Sequence[int],
    streams: Streams,
    observe: Observe,
    raised: Records | None = None,
    person: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """Train one shadow: `train_block` with S = 1, but for ``members`` (parties, largest size)."""
    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    data = torch.tensor(pool.features), torch.tensor(pool.labels)
    names = list(exchanged(module))
    current = [torch.tensor(initial[name], dtype=torch.float32) for name in names]
    aggregate = server(plan)
    heldout = draw_heldout(plan, members[None], len(pool), [streams])
    parties = []
    for k, party in enumerate(plan.parties):
        rows, owner = members[k][members[k] >= 0], None
        if party.dp and party.dp.unit == "person":
            assert person is not None
            rows = _bounded(rows, person, party.dp.records_per_person, streams.person)
            owner = person[rows]
        beside = _rows(data, heldout[k][0]) if k in heldout else None
        parties.append(_Party(plan, k, _rows(data, rows), beside, streams.key, owner))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.seed)
        for t in range(plan.rounds + 1):
            load_weights(module, dict(zip(names, current, strict=True)))
            if t in rounds:
                weights = {name: w[None] for name, w in zip(names, current, strict=True)}
                observe(t, _answers(module, signal_records)[None], weights)
            if t == plan.rounds:
                break
            schedule = draw_schedule(plan, [streams])
            mean = [torch.zeros_like(w) for w in current]
            total = int(schedule.active[0] @ plan.sizes)
            for k in np.flatnonzero(schedule.active[0]).tolist():
                load_weights(module, dict(zip(names, current, strict=True)))
                parties[k].train(module, schedule)
                if plan.ascends(k, t + 1):
                    _ascend(plan, module, dict(zip(names, current, strict=True)), raised)
                for sum_, answer in zip(mean, exchanged(module).values(), strict=True):
                    sum_ += plan.parties[k].size / total * answer
            current = aggregate(current, mean)
    return {name: w[None] for name, w in zip(names, current, strict=True)}


def _ascend(
    plan: FederationPlan, module: nn.Module, sent: Mapping[str, Tensor], raised: Records | None
) -> None:
    """Add the ascent to the answer ``module`` to the model ``sent``, in place."""
    assert plan.ascent is not None and raised is not None
    answer = exchanged(module)
    learnt = deviation.length({name: (answer[name] - w).numpy() for name, w in sent.items()})
    step = deviation.ascent(module, raised, plan.ascent.rate)
    step = deviation.shortened(step, plan.ascent.limit * learnt)
    module.train()
    for name, change in step.items():
        answer[name] += torch.from_numpy(change)


def _rows(data: Data, rows: np.ndarray) -> Data:
    index = torch.from_numpy(rows[rows >= 0].astype(np.int64))
    return data[0][index], data[1][index]


def _bounded(rows: np.ndarray, person: np.ndarray, most: int, stream: np.random.Generator) -> np.ndarray:
    """Return the first ``most`` of each person's rows in a random order, in the order that they had."""
    if not most:
        return rows
    kept: dict[int, list[int]] = {}
    for place in stream.permutation(len(rows)):
        hers = kept.setdefault(int(person[rows[place]]), [])
        if len(hers) < most:
            hers.append(int(place))
    return rows[sorted(place for hers in kept.values() for place in hers)]


def _answers(module: nn.Module, records: Records) -> Tensor:
    """Return logits (n, classes) in evaluation mode."""
    module.eval()
    with torch.no_grad():
        parts = [module(x) for x in torch.tensor(records.features).split(4096)]
    module.train()
    return torch.cat(parts)


class _Party:
    """A simulated party; what outlives a round is the clipping norm, where it adapts."""

    def __init__(
        self,
        plan: FederationPlan,
        party: int,
        data: Data,
        heldout: Data | None,
        key: tuple[int, int],
        owner: np.ndarray | None,
    ) -> None:
        self._owner = owner
        self._plan, self._party, self._data, self._heldout, self._key = plan, party, data, heldout, key
        self._dp, self._defence = plan.parties[party].dp, plan.parties[party].defence
        self._norm = self._dp.clipping_norm if self._dp else 0.0

    def train(self, module: nn.Module, schedule: Schedule) -> None:
        """Train ``module`` in place for one round, and shape its update."""
        plan, k, defence = self._plan, self._party, self._defence
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        anchors = {name: p.detach().clone() for name, p in trained.items()}
        layout = layout_of(module, plan.classes)
        step = _torch_optimizer(plan, k, list(trained.values()))
        stop = _Stopping(module, self._heldout, defence.patience) if self._heldout else None
        batches = schedule.batches[k][0]
        for i, batch in enumerate(batches):
            rows, units = self._drawn(batch[batch >= 0])
            x, targets = self._regularised(schedule, i, rows)
            step.zero_grad()
            with self._dropping(module, layout, schedule, i):
                if self._dp is None:
                    defended_loss(module(x), targets, defence, i // plan.batches_per_epoch(k)).backward()
                else:
                    self._write_private_gradient(module, layout, x, targets, units, schedule.noise[0, k, i])
            for name, p in trained.items():
                if p.grad is not None:
                    p.grad += plan.proximal_mu * (p.detach() - anchors[name])
                    p.grad += defence.l1 * p.detach().sign()
            step.step()
            epoch_ends = (i + 1) % plan.batches_per_epoch(k) == 0 or i + 1 == len(batches)
            if stop and epoch_ends and stop.ends():
                break
        if stop:
            stop.finish()
        if defence.changes_update:
            number = schedule.rounding[0, k : k + 1] if defence.quantise else np.zeros(1, np.uint64)
            self._shape(trained, anchors, layout, number)

    def _drawn(self, batch: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
        """Return the rows of a batch of records or persons, and which of these rows each of them has."""
        if self._owner is None:
            return batch, [[i] for i in range(len(batch))]
        everyone = np.unique(self._owner)
        rows: list[int] = []
        units = []
        for one in everyone[batch[batch < len(everyone)]]:
            hers = np.flatnonzero(self._owner == one).tolist()
            units.append(list(range(len(rows), len(rows) + len(hers))))
            rows += hers
        return np.array(rows, int), units

    def _regularised(self, schedule: Schedule, step: int, batch: np.ndarray) -> Data:
        """Return features and targets (B, classes) of a batch, mixed where mixup is on."""
        x, targets = self._data[0][batch], self._targets(self._data[1][batch])
        if self._party not in schedule.mixing:
            return x, targets
        mixing = schedule.mixing[self._party]
        other, share = mixing.partner[0, step], float(mixing.share[0, step])
        other = other[other >= 0]
        x = share * x + (1 - share) * self._data[0][other]
        return x, share * targets + (1 - share) * self._targets(self._data[1][other])

    def _targets(self, labels: Tensor) -> Tensor:
        classes = self._plan.classes
        smoothing = self._defence.smoothing_of(classes)
        return (1 - smoothing) * functional.one_hot(labels, classes).float() + smoothing / classes

    @contextmanager
    def _dropping(self, module: nn.Module, layout: Stack, schedule: Schedule, step: int) -> Iterator[None]:
        """Drop hidden units for a while: of stacked layers the same as in a stack, else by torch's stream."""
        probability = self._defence.dropout
        hidden = sum(layout.hidden_widths)
        if not probability or not hidden:
            with dropout(module, probability):
                yield
            return
        layers = hidden_units(module)
        size = len(self._data[0]) * hidden
        numbers = uniform(self._key, schedule.dropout[0, self._party, step : step + 1], size)
        factors = (numbers.view(-1, hidden) >= probability) / (1 - probability)
        drop = _Dropping(factors.split(layout.hidden_widths, dim=1))
        with hooked(layers, drop):
            yield

    def _write_private_gradient(
        self,
        module: nn.Module,
        layout: Stack,
        x: Tensor,
        targets: Tensor,
        units: list[list[int]],
        number: np.uint64,
    ) -> None:
        """Write (Σ_i min(1, C / ‖g_i‖) g_i + N(0, (zC)²)) / (q n) into ``grad`` (Abadi et al. 2016, alg. 1).

        g_i is the gradient of the mean loss of the rows of a unit, a record or a person. Then C moves,
        where it adapts (Andrew et al. 2021, algorithm 1).
        """
        dp = self._plan.dp(self._party)
        source = noise_source(self._key, layout)
        flat = torch.empty(1, source.size)
        sign = source.draw(np.array([number]), out=flat)
        flat *= sign
        noise = layout.state(layout.split(flat[:, :-1]))
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for name, p in trained.items():
            p.grad = dp.gradient_noise * self._norm / dp.expected_batch * noise[name][0]
        shorter = 0
        for rows in units:
            loss = functional.cross_entropy(module(x[rows]), targets[rows])
            gradients = torch.autograd.grad(loss, list(trained.values()))
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item()
            shorter += norm <= self._norm
            factor = min(1.0, self._norm / (norm + 1e-6)) / dp.expected_batch
            for p, g in zip(trained.values(), gradients, strict=True):
                assert p.grad is not None
                p.grad += factor * g
        if dp.clipping == "adaptive":
            count = shorter - len(units) / 2 + dp.count_noise * float(flat[0, -1])
            self._norm = dp.next_clipping_norm(self._norm, count)

    def _shape(
        self,
        trained: Mapping[str, nn.Parameter],
        sent: Mapping[str, Tensor],
        layout: Stack,
        number: np.ndarray,
    ) -> None:
        updates = {name: (p.detach() - sent[name]).double() for name, p in trained.items()}
        flat = uniform(self._key, number, layout.parameters)
        numbers = layout.state(layout.split(flat))
        shaped = _shaped(updates, self._defence, {name: numbers[name][0].double() for name in updates})
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(sent[name] + shaped[name].float())


class _Dropping:
    """Multiplies each hidden layer's outputs by what is kept of them, (records, units) of every layer."""

    def __init__(self, factors: Sequence[Tensor]) -> None:
        self._factors = factors
        self._layer = self._record = 0

    def __call__(self, layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        factors = self._factors[self._layer][self._record : self._record + len(output)]
        self._layer += 1
        if self._layer == len(self._factors):  # the next call is for the batch's next records
            self._layer, self._record = 0, self._record + len(output)
        return output * factors


class _Stopping:
    """Early stopping (`fedsim.core.training.stopping.EarlyStopping`)."""

    def __init__(self, module: nn.Module, heldout: Data, patience: int | None) -> None:
        assert patience is not None
        self._module, self._data, self._patience = module, heldout, patience
        self._lowest, self._waited = float("inf"), 0
        self._best: dict[str, Tensor] = {}

    def ends(self) -> bool:
        """Measure the module; return whether the round ends here."""
        self._module.eval()
        with torch.no_grad():
            loss = functional.cross_entropy(self._module(self._data[0]).double(), self._data[1]).item()
        self._module.train()
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            self._best = {name: value.clone() for name, value in self._module.state_dict().items()}
            return False
        self._waited += 1
        return self._waited >= self._patience

    def finish(self) -> None:
        """Give the module the weights of its best epoch."""
        self._module.load_state_dict(self._module.state_dict() | self._best)


def _torch_optimizer(
    plan: FederationPlan, party: int, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    settings = plan.training_of(party)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.l2)
    return torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.l2)


def _shaped(
    updates: Mapping[str, Tensor], defence: DefenceSettings, numbers: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return updates clipped, then sparsified over all parameters, then quantised each."""
    flat = torch.cat([update.flatten() for update in updates.values()])
    if defence.clip_update is not None and flat.norm() > defence.clip_update:
        flat = flat * defence.clip_update / flat.norm()
    if defence.sparsify is not None:
        sent = int(np.ceil(defence.sparsify * len(flat)))
        for i in flat.abs().argsort(descending=True, stable=True)[sent:].tolist():
            flat[i] = 0
    pieces = flat.split([update.numel() for update in updates.values()])
    shaped = {name: piece.view(updates[name].shape) for name, piece in zip(updates, pieces, strict=True)}
    if defence.quantise is None:
        return shaped
    return {
        name: _quantised(update, numbers[name], 2**defence.quantise - 1) for name, update in shaped.items()
    }


def _quantised(update: Tensor, numbers: Tensor, top: int) -> Tensor:
    reach = update.abs().max()
    if reach == 0:
        return update
    spacing = 2 * reach / top
    level = torch.minimum(torch.floor((update + reach) / spacing + numbers), torch.tensor(top))
    return torch.where(update == 0, 0.0, level * spacing - reach)
