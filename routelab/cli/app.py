"""The command line, assembled from one module for each command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from routelab.cli.analyze_command import analyze_command
from routelab.cli.arguments import load_plugins
from routelab.cli.check_command import check
from routelab.cli.clock_command import clock_command
from routelab.cli.compare_command import compare_command
from routelab.cli.count_command import count_command
from routelab.cli.distil_command import distil_command
from routelab.cli.doctor_command import doctor_command
from routelab.cli.explain_command import explain_command
from routelab.cli.list_command import list_command
from routelab.cli.new_command import new_command
from routelab.cli.replay_command import replay_command
from routelab.cli.report_command import report_command
from routelab.cli.serve_cost_command import serve_cost_command
from routelab.cli.sweep_commands import sweep
from routelab.cli.train_command import train_command
from routelab.cli.ui_command import ui_command
from routelab.core.errors import PluginWarning, StorageError, UsageError
from routelab.core.former_names import missing_package

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="A laboratory for routing strategies: what a router buys per FLOP, with intervals.\n\nExample: routelab compare data=digits seeds=3",
)  # fmt: skip

_INTERRUPTED = "interrupted; the same command goes on where this one stopped, finished runs are kept"


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from routelab import __version__

        typer.echo(f"routelab {__version__}")
        raise typer.Exit


@app.callback()
def root(
    plugin: Annotated[
        list[str] | None, typer.Option(help="A .py file or a module with routers of your own; may be repeated.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version of routelab.")
    ] = False,
) -> None:
    """Options that stand before the command."""
    load_plugins(plugin or [])


# In the order of `routelab --help`.
app.command(name="compare")(compare_command)
app.command(name="distil")(distil_command)
app.command(name="train")(train_command)
app.command(name="report")(report_command)
app.command(name="replay")(replay_command)
app.command(name="explain")(explain_command)
app.command(name="analyze")(analyze_command)
app.command(name="clock")(clock_command)
app.command(name="serve-cost")(serve_cost_command)
app.command(name="list")(list_command)
app.command(name="count")(count_command)
app.command(name="new")(new_command)
app.command(name="doctor")(doctor_command)
app.command(name="ui")(ui_command)
app.add_typer(sweep, name="sweep")
app.add_typer(check, name="check")


def main() -> None:
    """Entry point: exit code 0 fine, 1 the work failed, 2 the call was wrong."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))


def guarded(call: Callable[[], Any]) -> int:
    """Run a command; errors become one sentence and an exit code."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", PluginWarning)
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"Warning: {message}", err=True)
    try:
        code = call()
    except StorageError as error:
        return _say(str(error), 1)
    except UsageError as error:
        return _say(str(error), 2)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _say(_INTERRUPTED, 130)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _say(f"{error.filename or 'a file of this run'}: {error.strerror or error}", 1)
    except Exception as error:
        missing = missing_package(error)
        if missing is not None:
            return _say(missing, 1)
        # Wrong options and commands: click's exceptions, which some releases of typer carry under a name of their own.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            return 2
        return _say(str(error.format_message()), 2)
    if code == 130:
        # Some releases of typer turn Ctrl-C into this code themselves.
        return _say(_INTERRUPTED, 130)
    return code if isinstance(code, int) else 0


def _say(text: str, code: int) -> int:
    typer.echo(f"routelab: {text}" if code == 130 else f"Error: {text}", err=True)
    return code
