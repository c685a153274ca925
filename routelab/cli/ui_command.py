"""`routelab ui`: the MLflow UI over the tracking store."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from routelab.cli.arguments import DEFAULT_TRACKING_URI, JsonOption
from routelab.core.errors import UsageError


def ui_command(
    uri: Annotated[str, typer.Option(help="The tracking store.")] = DEFAULT_TRACKING_URI,
    port: Annotated[int, typer.Option(help="The port on 127.0.0.1.")] = 5000,
    as_json: JsonOption = False,
) -> None:
    """Serve the MLflow UI on 127.0.0.1 over the tracking store.

    Example: routelab ui --port 5001
    """
    raise typer.Exit(serve(uri, port, as_json))


def serve(uri: str, port: int, as_json: bool = False) -> int:
    """Run the MLflow UI until Ctrl-C. as_json: say where as JSON, before it answers there."""
    import subprocess

    from routelab.cli.output import console, print_json
    from routelab.tracking.artifacts import ui_command
    from routelab.tracking.uri import shown

    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port} must be between 1 and 65535")
    path = uri.removeprefix("sqlite:///")
    if path != uri and not os.path.exists(path):
        raise UsageError(f"--uri {uri!r}: there is no such store yet; run routelab compare first")
    command, environment = ui_command(uri, port)
    address = f"http://127.0.0.1:{port}"
    if as_json:
        print_json({"uri": shown(uri), "address": address})
    console(as_json).print(f"MLflow UI over {shown(uri)} on {address} (Ctrl-C ends it; it takes about ten seconds to start)")
    try:
        return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    except KeyboardInterrupt:
        return 0
