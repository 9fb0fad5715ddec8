"""One party's local training in one round, and the evaluation of a model on records.

Plain stacks of linear layers and ReLU, which most tabular models are, take a path with the forward and the
backward pass written out on one flat parameter vector; every other module takes torch.nn and torch.optim.
Which path is taken depends on the module's type alone. What a step is, regularisation included, is defined in
`clients.defences`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim import models, rng
from fedsim.data.records import Records
from fedsim.models import linear_stack
from fedsim.privacy import steps_per_round
from fedsim.scenario import NO_DEFENCE, DefenceSettings, TrainingSettings

Update = Callable[[Tensor], None]
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingReport:
    """What one round of local training says about itself.

    steps: optimizer steps made
    loss: mean cross-entropy (nats) of the round's batches, each before its step, as it was minimised: with
        smoothed and mixed targets, and with dropout; None under DP, where it would be an answer about private
        records outside the accounting
    clipping_norm: C after the last step of adaptive clipping, None without it
    """

    steps: int
    loss: float | None = None
    clipping_norm: float | None = None


def train(
    module: nn.Module,
    records: Records,
    settings: TrainingSettings,
    generator: torch.Generator,
    *,
    proximal_mu: float = 0.0,
    device: str = "cpu",
    defence: DefenceSettings = NO_DEFENCE,
    stop_on: Records | None = None,
) -> TrainingReport:
    """Train ``module`` in place on ``records`` for one round, the optimizer's state starting fresh.

    Minimises the cross-entropy plus FedProx's proximal term μ/2 ‖w − w_t‖² (Li et al. 2020, eq. 2), w_t
    being the weights on entry. Every epoch goes through the records in a fresh permutation drawn from
    ``generator`` (CPU).

    settings: the party's own (`Scenario.training_of`), with its weight decay and epochs
    defence: how it regularises (`clients.defences`); its update is not shaped here
    stop_on: the records that early stopping looks at, where the defence has a patience

    Raises:
        ValueError: there are no records to train on, or none to stop on where that is asked for.
    """
    if len(records) == 0:
        raise ValueError("a party without records cannot train")
    module.to(device).train()
    stop = early_stopping(module, stop_on, defence, -(-len(records) // settings.batch), device)
    run = _train_any if linear_stack(module) is None else _train_stack
    return run(module, tensors(records, device), settings, generator, proximal_mu, defence, stop)


def tensors(records: Records, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return features (n, …) float32 and labels (n,) int64 on ``device``."""
    features = torch.from_numpy(np.ascontiguousarray(records.features, dtype=np.float32))
    labels = torch.from_numpy(np.ascontiguousarray(records.labels, dtype=np.int64))
    return features.to(device), labels.to(device)


def minibatches(
    data: tuple[Tensor, Tensor], settings: TrainingSettings, generator: torch.Generator
) -> Batches:
    """Yield the batches of one round: a permutation per epoch, cut into pieces; the last may be smaller."""
    n = len(data[0])
    left = steps_per_round(settings, n)
    while left:
        order = torch.randperm(n, generator=generator).to(data[0].device)
        # Gathered once an epoch: the batches are then views.
        shuffled = [part[order].split(settings.batch) for part in data]
        for batch in list(zip(*shuffled, strict=True))[:left]:
            left -= 1
            yield batch


def mixed(batches: Batches, alpha: float, stream: np.random.Generator) -> Batches:
    """Yield the batches as mixup (Zhang et al. 2018) makes them, targets (B, K) alike; as they are if α = 0.

    Drawn from ``stream`` for each batch: λ ~ Beta(α, α), then the permutation.
    """
    for x, target in batches:
        if alpha == 0:
            yield x, target
            continue
        share = stream.beta(alpha, alpha)
        other = torch.from_numpy(stream.permutation(len(x))).to(x.device)
        yield torch.lerp(x[other], x, share), torch.lerp(target[other], target, share)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return targets (n, K) float32: (1 − s)·one-hot + s/K (Szegedy et al. 2016, section 7)."""
    one_hot = functional.one_hot(labels, classes).float()
    return one_hot if smoothing == 0 else one_hot.mul_(1 - smoothing).add_(smoothing / classes)


def targets_for(module: nn.Module, data: tuple[Tensor, Tensor], defence: DefenceSettings) -> Tensor:
    """Return what the cross-entropy is taken against: `smoothed` targets, or labels where these do."""
    features, labels = data
    if defence.label_smoothing == 0 and defence.mixup == 0:
        return labels
    with torch.no_grad():
        classes = module.eval()(features[:1]).shape[1]
    module.train()
    return smoothed(labels, classes, defence.label_smoothing)


class EarlyStopping:
    """Ends a round when the loss on records that it does not train on has stopped falling (Prechelt 1998).

    After every epoch, ⌈n / batch⌉ steps, and after the last step, the mean cross-entropy of the stopping
    records is measured, in evaluation mode and against their labels as they are. After ``patience`` epochs
    in a row that were not below the lowest so far the round ends. Its answer is the model of the epoch whose
    loss was the lowest, of equals the first; the model that the round set out from does not count.

    A party's own held-out records, if it stops on these, have influenced its model: they are non-members
    of a training that looked at them.
    """

    def __init__(self, module: nn.Module, records: Records, patience: int, epoch: int, device: str) -> None:
        self._module, self._records, self._device = module, records, device
        self._patience, self._epoch = patience, epoch
        self._lowest, self._waited, self._seen = math.inf, 0, 0
        self._best: dict[str, Tensor] = {}

    def due(self, step: int) -> bool:
        """Return whether an epoch ends with this step, the first being 1."""
        return step % self._epoch == 0

    def ends(self, step: int) -> bool:
        """Measure the module after ``step`` steps; return whether the round ends here."""
        self._seen = step
        loss = mean_loss(logits(self._module, self._records, device=self._device), self._records.labels)
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            self._best = {name: value.clone() for name, value in self._module.state_dict().items()}
            return False
        self._waited += 1
        return self._waited >= self._patience

    def finish(self, step: int) -> None:
        """Measure the module after the last ``step`` as well, and give it the weights of the best epoch."""
        if self._seen < step:
            self.ends(step)
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                value.copy_(self._best.get(name, value))  # no loss was a number: the weights are not either


def early_stopping(
    module: nn.Module, records: Records | None, defence: DefenceSettings, epoch: int, device: str
) -> EarlyStopping | None:
    """Return the early stopping that ``defence`` asks for, ``epoch`` steps being an epoch.

    Raises:
        ValueError: it asks for it and there are no records to stop on.
    """
    if defence.patience is None:
        return None
    if records is None or len(records) == 0:
        raise ValueError("early stopping needs records to look at")
    return EarlyStopping(module, records, defence.patience, epoch, device)


def make_steps(
    batches: Batches,
    step: Callable[[Tensor, Tensor], None],
    stop: EarlyStopping | None = None,
    *,
    store: Callable[[], None] = lambda: None,
    watch: Callable[[], object] = lambda: None,
) -> int:
    """Make ``step(x, target)`` on every batch until early stopping ends the round; return how many.

    store: writes the parameters into the module that `EarlyStopping` measures, where they are kept elsewhere
    watch: called before the first step and after every one
    """
    made = 0
    watch()
    for made, (x, target) in enumerate(batches, 1):
        step(x, target)
        watch()
        if stop and stop.due(made):
            store()
            if stop.ends(made):
                break
    store()
    if stop:
        stop.finish(made)
    return made


def make_optimizer(settings: TrainingSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer for ``settings``; L2 is its (coupled) weight decay."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.l2)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.l2)


@contextmanager
def seeded_globally(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global stream, from which dropout in any module draws, for a while.

    The seed is a hash of the seed of ``generator``, whose own draws are left as they are.
    """
    with torch.random.fork_rng():
        torch.manual_seed(_global_seed(generator))
        yield


def dropout_stream(generator: torch.Generator, device: str | torch.device) -> torch.Generator:
    """Return a stream of its own that draws what torch's global one does under `seeded_globally`."""
    return torch.Generator(device).manual_seed(_global_seed(generator))


def _global_seed(generator: torch.Generator) -> int:
    return rng.integer(generator.initial_seed(), "global torch stream")


def mixup_stream(generator: torch.Generator) -> np.random.Generator:
    """Return the stream of a round's mixup, derived from the seed of ``generator``."""
    return rng.generator(generator.initial_seed(), "mixup")


def _train_any(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    generator: torch.Generator,
    proximal_mu: float,
    defence: DefenceSettings,
    stop: EarlyStopping | None,
) -> TrainingReport:
    parameters = [p for p in module.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters]
    optimizer = make_optimizer(settings, parameters)
    losses, sizes = [], []

    def step(x: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), target)
        loss.backward()
        add_penalties(parameters, anchor, proximal_mu, defence.l1)
        optimizer.step()
        losses.append(loss.detach())
        sizes.append(len(x))

    batches = minibatches((data[0], targets_for(module, data, defence)), settings, generator)
    with seeded_globally(generator), models.dropout(module, defence.dropout):
        steps = make_steps(mixed(batches, defence.mixup, mixup_stream(generator)), step, stop)
    mean = np.average(torch.stack(losses).cpu().numpy(), weights=sizes)
    return TrainingReport(steps, float(mean))


def add_penalties(parameters: list[nn.Parameter], anchor: list[Tensor], mu: float, l1: float) -> None:
    """Add μ(w − w_t) of FedProx's proximal term and λ₁ sign(w) of L1 to the parameters' gradients."""
    for p, start in zip(parameters, anchor, strict=True):
        if p.grad is not None and mu:
            p.grad.add_(p.detach() - start, alpha=mu)
        if p.grad is not None and l1:
            p.grad.add_(p.detach().sign(), alpha=l1)


def _train_stack(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    generator: torch.Generator,
    proximal_mu: float,
    defence: DefenceSettings,
    stop: EarlyStopping | None,
) -> TrainingReport:
    with torch.inference_mode():
        stack = LinearStack(module, defence.dropout, dropout_stream(generator, data[0].device))
        update = stack.updater(settings, proximal_mu, defence.l1)
        outputs, targets = [], []

        def step(x: Tensor, target: Tensor) -> None:
            logits = stack.forward(x)
            # ∂(mean cross-entropy)/∂logits = (softmax − target) / batch
            stack.backward(torch.softmax(logits, 1).sub_(target).div_(len(x)))
            update(stack.gradient)
            outputs.append(logits)
            targets.append(target)

        batches = minibatches(for_stack(*data, stack.classes, defence.label_smoothing), settings, generator)
        mixing = mixed(batches, defence.mixup, mixup_stream(generator))
        steps = make_steps(mixing, step, stop, store=stack.store)
        loss = functional.cross_entropy(torch.cat(outputs), torch.cat(targets))
    return TrainingReport(steps, loss.item())


def for_stack(
    features: Tensor, labels: Tensor, classes: int, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return what `LinearStack` is fed: features and a column of ones (n, d + 1), and `smoothed` targets."""
    inputs = torch.cat([features.flatten(1), features.new_ones(len(features), 1)], 1)
    return inputs, smoothed(labels, classes, smoothing)


class LinearStack:
    """The layers of a Linear-ReLU-…-Linear module on one flat parameter vector, without autograd.

    A layer's weight and bias are one matrix (out, in + 1) and its inputs carry a column of ones: one matrix
    product instead of a product and a sum, which is what small layers cost.

    flat, gradient: (p,) float32, the layers' matrices one after the other. Use under `torch.inference_mode`.
    dropout: probability with which a hidden unit is left out of a step, drawn from ``stream`` as
        torch.nn.functional.dropout draws it
    """

    def __init__(
        self, module: nn.Module, dropout: float = 0.0, stream: torch.Generator | None = None
    ) -> None:
        self._dropout, self._stream = dropout, stream
        self._layers = linear_stack(module) or []
        self.flat = self.in_layout([p.detach() for p in module.parameters()])
        self.gradient = torch.zeros_like(self.flat)
        self._matrices = self._views(self.flat)
        self._gradients = self._views(self.gradient)
        self._transposed = [matrix.t() for matrix in self._matrices]
        self._weights = [matrix[:, :-1] for matrix in self._matrices]
        self.classes = len(self._matrices[-1])
        self._buffers: list[Tensor] = []
        self._hidden: list[tuple[Tensor, Tensor]] = []  # (with the column of ones, without), a layer each
        self._inputs: list[Tensor] = []

    def in_layout(self, parameters: list[Tensor]) -> Tensor:
        """Return tensors in the order of ``module.parameters()`` as a vector (p,) laid out as `flat` is."""
        pairs = zip(parameters[::2], parameters[1::2], strict=True)
        return torch.cat([torch.cat([weight, bias[:, None]], 1).flatten() for weight, bias in pairs])

    def _views(self, flat: Tensor) -> list[Tensor]:
        shapes = [(layer.out_features, layer.in_features + 1) for layer in self._layers]
        pieces = flat.split([rows * columns for rows, columns in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, k) of ``x`` (n, d + 1), see `for_stack`; keep the layers' inputs."""
        self._make_room(len(x))
        self._inputs = [x]
        for transposed, (inputs, hidden) in zip(self._transposed, self._hidden, strict=False):
            torch.clamp_min(torch.mm(x, transposed), 0, out=hidden)
            if self._dropout:
                kept = torch.empty(hidden.shape, device=hidden.device)
                kept.bernoulli_(1 - self._dropout, generator=self._stream)
                hidden.mul_(kept.div_(1 - self._dropout))
            self._inputs.append(x := inputs)
        return torch.mm(x, self._transposed[-1])

    def _make_room(self, n: int) -> None:
        """Cut the hidden layers' buffers to ``n`` rows."""
        widths = [layer.out_features for layer in self._layers[:-1]]
        if not self._buffers or n > len(self._buffers[0]):
            self._buffers = [self.flat.new_ones(n, width + 1) for width in widths]
        if not self._hidden or n != len(self._hidden[0][0]):
            self._hidden = [(buffer[:n], buffer[:n, :-1]) for buffer in self._buffers]

    def errors(self, error: Tensor) -> list[Tensor]:
        """Return δ_l = ∂loss/∂(layer's output) (n, width) for every layer, given the last one's (n, k)."""
        errors = [error]
        for weight, (_, hidden) in zip(self._weights[:0:-1], self._hidden[::-1], strict=True):
            # relu'(z) is read off its result: relu(z) > 0 exactly where z > 0 and the unit was not dropped.
            errors.append(torch.ops.aten.threshold_backward(torch.mm(errors[-1], weight), hidden, 0))
            if self._dropout:
                errors[-1].div_(1 - self._dropout)
        return errors[::-1]

    def backward(self, error: Tensor) -> None:
        """Write into ``gradient`` the gradient of the loss whose ∂loss/∂logits is ``error`` (n, k)."""
        self.accumulate(self.errors(error))

    def accumulate(self, errors: list[Tensor]) -> None:
        """Write into ``gradient`` the sum over records of the outer products δ_l × (layer's input)."""
        for error, inputs, gradient in zip(errors, self._inputs, self._gradients, strict=True):
            torch.mm(error.t(), inputs, out=gradient)

    def gradient_norms(self, errors: list[Tensor]) -> Tensor:
        """Return each record's gradient norm (n,), √Σ_l ‖δ_l‖² ‖(a_l, 1)‖², a_l the layer's input.

        The gradient of a linear layer for one record is an outer product, whose Frobenius norm is the product
        of the two norms (Goodfellow 2015, arXiv:1510.01799), so that it need not be formed.
        """
        norm = torch.linalg.vector_norm
        parts = [norm(e, dim=1) * norm(a, dim=1) for e, a in zip(errors, self._inputs, strict=True)]
        return norm(torch.stack(parts), dim=0)

    def updater(self, settings: TrainingSettings, proximal_mu: float, l1: float = 0.0) -> Update:
        """Return a function that makes one step with a gradient: proximal term, L1, weight decay added."""
        step = _adam(self.flat, settings) if settings.optimizer == "adam" else _sgd(self.flat, settings)
        if proximal_mu == 0 and l1 == 0 and settings.l2 == 0:
            return step
        anchor = self.flat.clone()

        def update(gradient: Tensor) -> None:
            if proximal_mu:
                gradient.add_(self.flat - anchor, alpha=proximal_mu)
            if l1:
                gradient.add_(self.flat.sign(), alpha=l1)
            if settings.l2:
                gradient.add_(self.flat, alpha=settings.l2)
            step(gradient)

        return update

    def parameters(self) -> list[Tensor]:
        """Return views of the parameters as they are now, in the order of ``module.parameters()``."""
        return [view for matrix in self._matrices for view in (matrix[:, :-1], matrix[:, -1])]

    def store(self) -> None:
        """Copy the parameters back into the module."""
        for layer, matrix in zip(self._layers, self._matrices, strict=True):
            layer.weight.copy_(matrix[:, :-1])
            layer.bias.copy_(matrix[:, -1])


def _sgd(flat: Tensor, settings: TrainingSettings) -> Update:
    """SGD with heavy-ball momentum as torch.optim.SGD has it: v ← m v + g, w ← w − lr v."""
    if settings.momentum == 0:

        def plain(gradient: Tensor) -> None:
            flat.sub_(gradient, alpha=settings.lr)

        return plain
    velocity = torch.zeros_like(flat)

    def heavy_ball(gradient: Tensor) -> None:
        velocity.mul_(settings.momentum).add_(gradient)
        flat.sub_(velocity, alpha=settings.lr)

    return heavy_ball


def _adam(flat: Tensor, settings: TrainingSettings) -> Update:
    """Adam (Kingma & Ba 2015, algorithm 1) with torch.optim.Adam's defaults."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    t = 0

    def step(gradient: Tensor) -> None:
        nonlocal t
        t += 1
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(1 - beta2**t)).add_(epsilon)
        flat.addcdiv_(mean, scale, value=-settings.lr / (1 - beta1**t))

    return step


def evaluate(module: nn.Module, records: Records, *, device: str = "cpu") -> dict[str, float]:
    """Return accuracy, loss (mean cross-entropy, nats), auc and n of ``module`` on ``records``.

    auc: area under the ROC curve; for more than two classes the mean of the one-against-the-rest areas.
    NaN where a class is absent. All but n are NaN on no records.
    """
    if len(records) == 0:
        return {"accuracy": math.nan, "loss": math.nan, "auc": math.nan, "n": 0}
    scores = logits(module, records, device=device)
    return {
        "accuracy": float((scores.argmax(1) == records.labels).mean()),
        "loss": mean_loss(scores, records.labels),
        "auc": auc(np.exp(log_probabilities(scores)), records.labels),
        "n": len(records),
    }


def mean_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy (nats) of logits (n, k) float64 with labels (n,)."""
    return float(-log_probabilities(scores)[np.arange(len(labels)), labels].mean())


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Return the log-softmax (n, k) of logits (n, k) float64."""
    return torch.log_softmax(torch.from_numpy(scores), 1).numpy()


def logits(module: nn.Module, records: Records, *, device: str = "cpu", batch: int = 4096) -> np.ndarray:
    """Return the module's logits (n, k) float64 on ``records``, in evaluation mode."""
    training = module.training
    module.to(device).eval()
    features, _ = tensors(records, device)
    with torch.no_grad():
        parts = [module(x).cpu() for x in features.split(batch)]
    module.train(training)
    return torch.cat(parts).double().numpy()


def auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the ROC AUC of class probabilities (n, k) for labels (n,); see `evaluate`."""
    k = probabilities.shape[1]
    if len(np.unique(labels)) < max(k, 2) or not np.isfinite(probabilities).all():
        return math.nan
    classes = [1] if k == 2 else range(k)
    return float(np.mean([_binary_auc(probabilities[:, c], labels == c) for c in classes]))


def _binary_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Mann–Whitney's U over the number of pairs; ties count one half."""
    _, position, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[position]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))
