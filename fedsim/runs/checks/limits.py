"""What cannot work or cannot fit, said before any work starts: sizes, devices, counts of parties."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from attacks import registry
from fedsim.core.data.encode import Encoded
from fedsim.core.errors import InputError, plainly, suggestion
from fedsim.core.scenario.settings import Scenario

LARGEST_EPSILON = 1e6
"""Beyond it a guarantee says nothing, and noise for it is searched for long."""

LARGEST_NOISE = 1e6
"""Noise multiplier beyond which nothing of a gradient is left, and float32 overflows before long."""

LARGEST_CLIPPING_NORM = 1e12

_FLOAT = 4  # bytes


def check(scenario: Scenario, encoded: Encoded, rows: Mapping[str, np.ndarray]) -> None:
    """Check the scenario's sizes and counts against this machine and these parties.

    rows: party → row indices in ``encoded``

    Raises:
        InputError: in one sentence, which key is out of reach, and what would be in it.
    """
    _parties(scenario, len(rows))
    _noise(scenario)
    _device(scenario.device)
    memory = memory_bytes()
    for key, value, needed, advice in _sizes(scenario, encoded, rows):
        if needed > memory:
            raise InputError(
                f"{key} = {value}: that takes about {in_words(needed)} of memory, and there is "
                f"{in_words(memory)}; {advice}"
            )


def _parties(scenario: Scenario, parties: int) -> None:
    federation = scenario.federation
    taking_part = federation.participants(parties)
    if federation.min_parties > taking_part:
        of_all = "" if taking_part == parties else f" (federation.fraction = {federation.fraction:g})"
        raise InputError(
            f"federation.min_parties = {federation.min_parties}: {taking_part} of {parties} parties train in "
            f"a round{of_all}; use at most {taking_part}"
        )


def _noise(scenario: Scenario) -> None:
    """Check noise and clipping of every party's DP and of central DP."""
    central = scenario.federation.central_dp
    settings = {f"dp.{name}": dp for name, dp in scenario.dp.items() if not isinstance(dp, str)}
    for key, dp in {**settings, "federation.central_dp": central}.items():
        if dp is None:
            continue
        limits = {"noise_multiplier": LARGEST_NOISE, "clipping_norm": LARGEST_CLIPPING_NORM}
        epsilon = getattr(dp, "epsilon", None)
        if epsilon is not None and epsilon > LARGEST_EPSILON:
            raise InputError(
                f"{key}.epsilon = {epsilon:g} guarantees nothing; use at most {LARGEST_EPSILON:g}, or 'off'"
            )
        for name, limit in limits.items():
            value = getattr(dp, name)
            if value is not None and value > limit:
                raise InputError(f"{key}.{name} = {value:g}: numbers would overflow; use at most {limit:g}")


def _device(name: str) -> None:
    """Check that torch knows the device and that it is there, by putting a number on it."""
    if name == "cpu":
        return
    import torch

    known = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    known += ["mps"] if torch.backends.mps.is_available() else []
    try:
        there = torch.zeros(1, device=name).sum().item() == 0.0
    except Exception as error:
        raise InputError(f"device = '{name}': {_reason(error)}{suggestion(name, known)}") from error
    if not there:
        raise InputError(f"device = '{name}': it holds no numbers{suggestion(name, known)}")


def _reason(error: Exception) -> str:
    unknown = "device type" in str(error) or "Invalid device" in str(error)
    return "torch knows no such device" if unknown else f"it is not there ({plainly(error)[:80]})"


def _sizes(
    scenario: Scenario, encoded: Encoded, rows: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, object, float, str]]:
    """Yield key, value, bytes of memory that it takes at the least, and what to do instead."""
    shape, classes = encoded.features.shape[1:], len(encoded.classes)
    hidden, training = scenario.model.hidden, scenario.training
    parameters, floats = _model(scenario, shape, classes)
    # Each party's module, the global model, and one answer of each party.
    copies = 2 * len(rows) + 2
    yield "model.hidden", hidden, copies * _FLOAT * parameters, "use narrower or fewer layers"
    yield "training.batch", training.batch, _FLOAT * float(training.batch) * floats, "use smaller batches"
    record = _FLOAT * math.prod(shape) + 8
    dealt = sum(map(len, rows.values()))
    yield "games", scenario.games, float(scenario.games) * dealt * record, "run fewer games, or several runs"
    if any(attack.shadows for attack in registry.attacks_of(scenario)):
        settings = scenario.adversary
        # Signals at four rounds, and who is a member, of each shadow and record.
        signals = min(dealt, (settings.candidates or dealt) + (settings.auxiliary_size or 0))
        needed = float(settings.shadows) * (signals * (4 * _FLOAT + 2) + dealt * _FLOAT)
        yield "adversary.shadows", settings.shadows, needed, "train fewer shadows"


def _model(scenario: Scenario, shape: tuple[int, ...], classes: int) -> tuple[float, float]:
    """Return the number of parameters (0: unknown), and of all layers' outputs for one record."""
    hidden, name = scenario.model.hidden, scenario.model.name
    if ":" in name:
        return 0.0, float(math.prod(shape))
    if name == "cnn" and len(shape) == 3:
        channels, height, width = (float(size) for size in shape)
        parameters, floats = 0.0, channels * height * width
        for filters in hidden:
            parameters += 9 * channels * filters + filters
            floats += 2 * filters * height * width
            channels, height, width = float(filters), height // 2, width // 2
        return parameters + classes * channels * height * width, floats
    widths = [float(math.prod(shape)), *map(float, hidden if name == "mlp" else []), float(classes)]
    parameters = sum(a * b + b for a, b in itertools.pairwise(widths))
    return parameters, sum(widths)


def memory_bytes() -> float:
    """Return the machine's memory, or what a container may use of it; infinite where that is unknown."""
    known = [math.inf]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        known.append(float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            known.append(float(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no container, or 'max'
            continue
    return min(known)


def in_words(size: float) -> str:
    """Return bytes with a unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
