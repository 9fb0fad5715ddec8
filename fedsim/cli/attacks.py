"""`fedsim attacks`."""

from __future__ import annotations

import click

from fedsim.cli.common import json_option, out, print_json


@click.group()
def attacks() -> None:
    """The attacks there are.

    \b
    Example:
      fedsim attacks list
    """


@attacks.command("list")
@json_option
def list_attacks(as_json: bool) -> None:
    """List the attacks: what each needs, sees, assumes, and its source; then those beyond membership.

    \b
    Example:
      fedsim attacks list
    """
    from attacks import registry
    from fedsim.terminal import data_tables

    if as_json:
        names = ("name", "observers", "infers", "sees", "needs", "assumes", "source")
        print_json([{name: getattr(attack, name) for name in names} for attack in registry.known()])
        return
    out().print(data_tables.attack_list(registry.known()))
    out().print(data_tables.further_attacks(registry.beyond_membership()))
