"""Named data sets and attacks as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attacks.declaration import Attack
from attacks.further import FurtherAttack
from fedsim.core.data.schema import Column
from fedsim.core.data.sources import DataSet
from fedsim.terminal.formatting import new_table


def attack_list(attacks: list[Attack]) -> Table:
    """Return who mounts each attack, what it sees, needs and assumes, and its source."""
    table = new_table("Attacks; a coalition mounts the participant's")
    table.add_column("observer", no_wrap=True)
    table.add_column("attack", no_wrap=True)
    for heading in ("sees", "needs", "assumes", "source"):
        table.add_column(heading)
    for attack in attacks:
        observer = attack.observers[0]
        cells = (observer, attack.name, attack.sees, attack.needs, attack.assumes, attack.source)
        table.add_row(*map(escape, cells))  # an attack may be a user's own, and say what it likes
    return table


def further_attacks(attacks: Sequence[FurtherAttack]) -> Table:
    """Return, for each attack beyond membership, its command, what it finds out and what it has to beat."""
    table = new_table("Beyond membership: of a finished run, fedsim COMMAND RUN")
    for heading in ("command", "attack", "infers", "observer", "sees", "assumes", "baseline", "source"):
        table.add_column(heading, overflow="fold")
    for a in attacks:
        cells = (a.command, a.name, a.infers, ", ".join(a.observers), a.sees, a.assumes, a.baseline, a.source)
        table.add_row(*map(escape, cells))
    return table


def data_list(entries: list[DataSet]) -> Table:
    """Return the named data sets, one a row."""
    table = new_table("Named data sets")
    table.add_column("name", no_wrap=True)
    for heading in ("what", "records", "classes", "licence", "from"):
        table.add_column(heading, justify="right" if heading in ("records", "classes") else "left")
    for entry in entries:
        source = "embedded" if entry.embedded else "download"
        classes = "text" if entry.schema.is_text else str(len(entry.schema.classes))
        table.add_row(entry.name, entry.title, str(entry.rows), classes, entry.licence, source)
    return table


def data_set(entry: DataSet, console: Console) -> None:
    """Print where a named data set comes from, and its declared columns."""
    schema = entry.schema
    facts = {
        entry.name: entry.title,
        "origin": entry.origin,
        "licence": entry.licence,
        "records": f"{entry.rows}, each a {entry.record}",
        "label": "" if schema.is_text else f"{schema.label}: {_some(schema.classes)}",
        "party": schema.party or "none",
        "person": schema.person or "none",
        "notes": entry.notes,
    }
    for word, text in facts.items():
        if text:
            console.print(f"[bold]{word}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)
    for file in entry.files:
        text = f"[bold]file[/bold]  {file.name}  SHA-256 {file.sha256}"
        console.print(text, highlight=False, soft_wrap=True)
    table = new_table(f"{len(schema.columns)} columns")
    for heading in ("column", "kind", "declared"):
        table.add_column(heading)
    for column in schema.columns[:40]:
        table.add_row(escape(column.name), column.kind, escape(_declared(column)))
    if len(schema.columns) > 40:
        table.add_row("…", "", f"and {len(schema.columns) - 40} more")
    console.print(table)


def facts(entry: DataSet) -> dict[str, object]:
    """Return the same as `data_set` prints, by name."""
    schema = entry.schema
    names = ("name", "title", "origin", "licence", "rows", "record", "notes", "files")
    columns = [
        {name: getattr(column, name) for name in ("name", "kind", "bounds", "categories")}
        for column in schema.columns
    ]
    return {name: getattr(entry, name) for name in names} | {
        "label": None if schema.is_text else schema.label,
        "classes": schema.classes,
        "party": schema.party,
        "person": schema.person,
        "columns": columns,
    }


def _declared(column: Column) -> str:
    if column.bounds is not None:
        return f"{column.bounds[0]:g} to {column.bounds[1]:g}"
    return _some(column.categories or ())


def _some(values: tuple[str, ...], limit: int = 12) -> str:
    return ", ".join(values[:limit]) + (" …" if len(values) > limit else "")
