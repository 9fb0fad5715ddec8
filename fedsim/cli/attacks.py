"""`fedsim attacks`."""

from __future__ import annotations

import click

from fedsim.cli.common import out


@click.group()
def attacks() -> None:
    """The attacks there are.

    \b
    Example:
      fedsim attacks list
    """


@attacks.command("list")
def list_attacks() -> None:
    """List the attacks: what each needs, sees, assumes, and its source; then those beyond membership.

    \b
    Example:
      fedsim attacks list
    """
    from attacks import registry
    from fedsim.terminal import data_tables

    out().print(data_tables.attack_list(registry.known()))
    out().print(data_tables.further_attacks(registry.beyond_membership()))
