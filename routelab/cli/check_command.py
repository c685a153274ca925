"""`routelab check`: the conformance suite on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

from routelab.cli.arguments import JsonOption, plugin_specs
from routelab.core.errors import UsageError

check = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="Hold a part against the rules of its kind.\n\nExample: routelab check router topk",
)  # fmt: skip

_MARKS = {"passed": "ok", "failed": "BROKEN", "skipped": "-"}
_BECAUSE = {"failed": "broken", "skipped": "does not apply"}


@check.command(name="router")
def check_router_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered router, built in or a plugin's.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the router.")] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="Also train a step in two processes (some ten seconds).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Test every rule that routers must keep on one router; 1 if one is broken.

    Example: routelab check router topk top_k=1 renormalize=false
    """
    raise typer.Exit(check_router(name, options or [], as_json, plugin_specs if processes else None))


def check_router(name: str, words: list[str], as_json: bool, in_processes: Sequence[str] | None) -> int:
    """Print what came of each rule; 1 if one is broken.

    words: key=value, options of the router. in_processes: None leaves out the rule of two processes, which otherwise load
    these plugins.
    """
    from routelab.routers.router_registry import ROUTERS

    ROUTERS.get(name)  # an unknown name is said before torch is loaded
    from omegaconf import OmegaConf

    for word in words:
        if "=" not in word:
            raise UsageError(f"argument {word!r} is not key=value")
    options = OmegaConf.to_container(OmegaConf.from_dotlist(words), resolve=True)
    given = {str(key): value for key, value in cast(dict[Any, Any], options).items()}
    import torch
    from rich.table import Table

    from routelab.cli.output import console, print_json
    from routelab.conformance import check_router as run

    torch.set_num_threads(1)  # the tensors are tiny
    checks = run(name, **given)
    if in_processes is not None:
        from routelab.conformance.process_rules import check_in_processes

        checks += check_in_processes({name: (name, given)}, in_processes).values()
    failed = [check for check in checks if check.failed]
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
        return 1 if failed else 0
    view = Table(header_style="")
    for column in ("rule", "", "what it says, and what broke"):
        view.add_column(column, no_wrap=column != "what it says, and what broke", overflow="fold")
    for check in checks:
        said = f"{check.rule}\n{_BECAUSE[check.state]}: {check.detail}" if check.detail else check.rule
        view.add_row(check.name, _MARKS[check.state], said)
    out = console()
    out.print(view)
    passed = sum(check.passed for check in checks)
    verdict = f"breaks {', '.join(check.name for check in failed)}" if failed else "breaks none"
    out.print(f"{name}: keeps {passed} of {len(checks)} rules, {len(checks) - passed - len(failed)} do not apply, {verdict}")
    return 1 if failed else 0
