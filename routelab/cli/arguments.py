"""Arguments and options that several commands share, and the configuration that command-line overrides resolve to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from routelab.core.errors import UsageError

OverridesArg = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, then key=value words.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Show the resolved configuration and where each value came from.")
]
RUN_HELP = "A run's folder, one of a comparison (results/NAME/ARM-sSEED), a cell's address, or an id in MLflow."
RunArg = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
TrackingUriOption = Annotated[str, typer.Option(help="The tracking store, where RUN is the id of a run in MLflow.")]
ExamplesOption = Annotated[int | None, typer.Option(help="Of the test split (as many as hold 32768 tokens).")]

DEFAULT_TRACKING_URI = "sqlite:///results/mlflow.db"

plugin_specs: list[str] = []
"""Plugins that --plugin names in this call. `load_plugins` sets them."""

_SWEEP_KEYS = ("study", "storage", "trials", "tuning_flops", "trial_seeds", "objectives", "sampler", "pruner", "search")
_KEYS_OF_OTHER_COMMANDS = {
    "compare": dict.fromkeys(_SWEEP_KEYS, "routelab sweep run")
    | {"arm": "routelab train; compare takes arms, such as arms=[dense,switch]", "seed": "routelab train; compare takes seeds"},
    "train": dict.fromkeys(_SWEEP_KEYS, "routelab sweep run")
    | {"arms": "routelab compare; train takes one arm, such as arm=switch", "seeds": "routelab compare; train takes seed"}
    | dict.fromkeys(("dense_ladder", "budget_ladder", "dense_budgets", "isoflop", "verdict", "workers"), "routelab compare"),
}
"""Keys that a command ignores, with the command that reads them. A file may contain them; overrides may not."""


def load_plugins(specs: Sequence[str]) -> None:
    """Load the plugins that stand before the command, and remember them for the processes that the command starts.

    Args:
        specs: .py files or names of modules.

    Raises:
        UsageError: if a plugin cannot be imported.
    """
    plugin_specs[:] = specs
    from routelab.core.plugins import load_plugin

    for spec in plugin_specs:
        load_plugin(spec)


def absolute_plugins() -> list[str]:
    """Return the plugins of this call. Files get absolute paths, so that every process can load them."""
    return [os.path.abspath(spec) if spec.endswith(".py") else spec for spec in plugin_specs]


def resolve_overrides(overrides: Sequence[str] | None, command: str = "") -> Any:
    """Return the configuration that the arguments of a command resolve to, with the plugins that stand before the command.

    Args:
        overrides: An optional configuration file, followed by key=value settings.
        command: Name of the command, if it does not read all keys.

    Returns:
        The `routelab.config.resolve.Resolved` configuration.

    Raises:
        UsageError: if an argument is not key=value, or its key or value is not allowed.
    """
    from routelab.config.resolve import resolve

    settings = list(overrides or [])
    path = settings.pop(0) if settings and "=" not in settings[0] else None
    if path == "":
        raise UsageError("argument '' is neither a configuration file nor key=value")
    require_settings(settings, "a configuration file")
    for setting in settings:
        other = _KEYS_OF_OTHER_COMMANDS.get(command, {}).get(setting.partition("=")[0].partition(".")[0])
        if other is not None:
            raise UsageError(f"{setting} is a key of {other}")
    return resolve(path or (), settings, absolute_plugins())


def require_settings(arguments: Sequence[str], first: str) -> None:
    """Refuse arguments that are not key=value.

    Args:
        arguments: All arguments but the first.
        first: Name of the first argument, for the error.

    Raises:
        UsageError: for the first argument without "=".
    """
    for argument in arguments:
        if "=" not in argument:
            raise UsageError(f"argument {argument!r} is not key=value; {first} comes first")


def parse_counts(option: str, text: str, example: str) -> list[int]:
    """Return the numbers of a text such as "1,16,256", in rising order.

    Args:
        option: Name of the option, for the error.
        text: Value of the option.
        example: Correct value, for the error.

    Raises:
        UsageError: unless all are whole numbers of at least 1.
    """
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise UsageError(f"{option} is {text!r}; it must be whole numbers of at least 1, such as {example}")
    return numbers
