"""Every key of a scenario with values that nobody means: an answer in one sentence, or a valid scenario."""

from __future__ import annotations

import datetime
import math
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.runs import document

from fedsim.core.errors import InputError
from fedsim.core.scenario.reading import parse, put
from fedsim.core.scenario.settings import Scenario
from fedsim.runs.prepare import check

VALUES: tuple[Any, ...] = (
    0, -1, 1, 10**18, 0.5, 1e300, math.inf, math.nan, True, False, "", "all", "x" * 5000, "\x1b[31mred",
    "北京", [], {}, datetime.date(2024, 1, 1),
)  # fmt: skip

SECONDS = 10
"""A check that takes longer has hung."""

LONGEST = 1000
"""Characters of an answer that is still a sentence."""


@dataclass(frozen=True)
class Trial:
    """What became of one value of one key; kind: 'valid', 'sentence', or what went wrong."""

    what: str
    kind: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in ("valid", "sentence")


def every_key() -> list[str]:
    """Every dotted key of a scenario; tables by party are tried for 'all'."""
    schema = Scenario.model_json_schema()
    return sorted(_leaves(schema, schema["$defs"], ""))


def _leaves(node: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, child in node["properties"].items():
        key, section = f"{prefix}{name}", _section(child, definitions)
        if section is None:
            yield key
            continue
        if name in ("dp", "defences"):
            key = f"{key}.all"
        yield key
        yield from _leaves(section, definitions, f"{key}.")


def _section(child: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section that a key holds, also as one of several kinds of value or by party; else None."""
    kinds = [child, *child.get("anyOf", []), *child.get("allOf", [])]
    if isinstance(child.get("additionalProperties"), dict):
        kinds += [child["additionalProperties"], *child["additionalProperties"].get("anyOf", [])]
    for kind in kinds:
        found = definitions.get(str(kind.get("$ref", "")).rpartition("/")[2], {})
        if "properties" in found:
            return dict(found)
    return None


def try_value(folder: Path, key: str, value: Any) -> Trial:
    """Check a tiny scenario in which ``key`` has this value."""
    what = f"{key} = {value!r:.40}"
    base = document(folder)
    if key.startswith("dp.all.") and key != "dp.all.epsilon":
        base["dp"] = {"all": {"noise_multiplier": 1.0, "accountant": "rdp"}}

    def act() -> None:
        put(base, key, value, "fuzz")
        with limited(SECONDS):
            check(parse(base), None)

    return judged(what, act)


def judged(what: str, act: Callable[[], object]) -> Trial:
    """Return what became of an attempt."""
    try:
        act()
    except InputError as error:
        text = str(error)
        if "\n" in text or "\x1b" in text or len(text) > LONGEST:
            return Trial(what, "no sentence", repr(text[:200]))
        return Trial(what, "sentence", text)
    except TimeoutError:
        return Trial(what, "hang")
    except Exception:
        return Trial(what, "traceback", traceback.format_exc(limit=-3))
    return Trial(what, "valid")


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the body after so many seconds."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
