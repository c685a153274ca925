"""`routelab new`: an installable package with a router, written from a template."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from routelab.cli.arguments import JsonOption


def new_command(
    kind: Annotated[str, typer.Argument(metavar="router", help="What to write; there is a template for a router.")],
    name: Annotated[str, typer.Argument(help="The router's name, and the folder's.")],
    into: Annotated[str, typer.Option(help="The folder to write it into.")] = ".",
    as_json: JsonOption = False,
) -> None:
    """Write an installable package with a router of your own, which works as it is.

    Example: routelab new router my_idea
    """
    from routelab.cli.output import console, print_json
    from routelab.scaffold import new as write

    paths = [str(path) for path in write(kind, name, into)]
    folder, router = os.path.normpath(os.path.join(into, name)), name.replace("-", "_")
    if as_json:
        print_json({"name": router, "folder": folder, "files": paths})
        return
    out = console()
    out.print(f"Wrote {folder}: the router {router!r}, its tests, and a comparison. Next:")
    for command in (
        f"python -m pip install -e {shlex.quote(folder)}",
        f"routelab check router {router}",
        f"routelab compare {shlex.quote(os.path.join(folder, f'{router}.yaml'))}",
    ):
        out.print(f"  {command}")
