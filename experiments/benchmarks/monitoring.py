"""How often does `fedsim log watch` name an honest key, and how often an attacker's?

    python experiments/benchmarks/monitoring.py --data-dir data     # about a minute

Each cell is the share of simulated keys that are named, of as many as --keys says. Honest keys ask about
random records in requests of 1 to 20, one in ten of them again; or play 'what if' with one number of a
record, which an honest clinic may do as well. Attackers ask as our own attacks do, in what a table can say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from fedsim.core import rng
from fedsim.core.data import catalogue
from fedsim.core.data.encode import encode
from fedsim.core.data.released import ReleasedSchema, decode_rows, encode_rows, release_schema
from fedsim.core.scenario.settings import DataSettings
from fedsim.serving.neighbours import Neighbours
from fedsim.serving.watch import Pattern

SETS = ("heart-disease", "breast-cancer", "diabetes-130", "adult", "bank-marketing", "credit-default")
SETS += ("location-30",)

Asks = list[np.ndarray]
Draw = np.random.Generator


def ordinary(n: int) -> Callable[[np.ndarray, Draw], Asks]:
    def asks(pool: np.ndarray, draw: Draw) -> Asks:
        index = draw.permutation(len(pool))[:n]
        again = index[draw.integers(len(index), size=len(index))]
        index = np.where(draw.random(len(index)) < 0.1, again, index)
        cuts = np.cumsum(draw.integers(1, 21, size=n))
        return [part for part in np.split(pool[index], cuts[cuts < len(index)]) if len(part)]

    return asks


def what_if(pool: np.ndarray, draw: Draw) -> Asks:
    """Ten values of one feature for each of twenty records."""
    parts = []
    for x in pool[draw.permutation(len(pool))[:20]]:
        copies = np.repeat(x[None], 10, axis=0)
        place = draw.integers(copies.shape[1])
        copies[:, place] = np.linspace(pool[:, place].min(), pool[:, place].max(), 10)
        parts += list(copies[:, None])
    return parts


def copies(scale: float) -> Callable[[np.ndarray, Draw], Asks]:
    """Choquette-Choo et al.: 16 copies of 25 records with noise."""

    def asks(pool: np.ndarray, draw: Draw) -> Asks:
        victims = pool[draw.permutation(len(pool))[:25]]
        sigma = scale * np.sqrt(victims.var(axis=0, dtype=np.float64).mean())
        return [(victims + sigma * draw.normal(size=victims.shape)).astype(np.float32) for _ in range(16)]

    return asks


def boundary(pool: np.ndarray, draw: Draw) -> Asks:
    """Halving the way between two records, 20 steps, for ten pairs."""
    parts = []
    for _ in range(10):
        low, high = pool[draw.permutation(len(pool))[:2]]
        for _ in range(20):
            middle = ((low + high) / 2).astype(np.float32)
            low, high = (middle, high) if draw.random() < 0.5 else (low, middle)
            parts.append(middle[None])
    return parts


def near_duplicates(pool: np.ndarray, draw: Draw) -> Asks:
    """Each of 30 records, and five times with all numbers moved by up to 1 % of their range."""
    victims = pool[draw.permutation(len(pool))[:30]]
    moved = [victims + draw.uniform(-0.04, 0.04, victims.shape).astype(np.float32) for _ in range(5)]
    return [victims, *moved]


TRAFFIC: dict[str, Callable[[np.ndarray, Draw], Asks]] = {
    "honest, 200 records": ordinary(200),
    "honest, 2,000 records": ordinary(2000),
    "honest, what if": what_if,
    "noisy copies, σ 0.5": copies(0.5),
    "noisy copies, σ 0.1": copies(0.1),
    "boundary": boundary,
    "near duplicates": near_duplicates,
    "list of persons": ordinary(100),
}


def records(name: str, data_dir: Path | None) -> tuple[np.ndarray, ReleasedSchema]:
    source = catalogue.load(name, data_dir)
    drawn = source.frame.sample(min(3000, len(source)), random_state=0).reset_index(drop=True)
    plain = replace(source, frame=drawn, schema=replace(source.schema, party=None, person=None))
    encoded = encode(plain, DataSettings(), rng.generator(0, "public records"))
    return encoded.features.reshape(len(encoded), -1), release_schema(source.schema, DataSettings(name=name))


def named(asks: Asks, schema: ReleasedSchema) -> bool:
    """Whether the key that asks so is named: in the service's own words and counts."""
    counting, pattern = Neighbours(schema), Pattern("key", "name")
    whole = encode_rows(schema, decode_rows(schema, np.concatenate(asks)))
    for said in np.split(whole, np.cumsum([len(features) for features in asks])[:-1]):
        pattern.records += len(said)
        pattern.near += counting.count("key", said)
    return pattern.probing


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--keys", default=20, show_default=True)
def main(data_dir: Path | None, keys: int) -> None:
    table = Table(title=f"share of {keys} keys that are named")
    for heading in ("traffic", *SETS):
        table.add_column(heading, justify="right")
    cells: dict[str, list[str]] = {name: [] for name in TRAFFIC}
    for name in SETS:
        pool, schema = records(name, data_dir)
        for traffic, asks in TRAFFIC.items():
            draws = [rng.generator(7, f"{traffic} of {name}", game=number) for number in range(keys)]
            share = np.mean([named(asks(pool, draw), schema) for draw in draws])
            cells[traffic].append(f"{100 * share:.0f} %")
    for traffic, row in cells.items():
        table.add_row(traffic, *row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
