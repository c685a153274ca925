"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from routelab.cli.sweep_command import sweep
from routelab.core.errors import PluginWarning, StorageError, UsageError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="A laboratory for routing strategies: what a router buys per FLOP, with intervals.\n\nExample: routelab compare data=digits seeds=3",
)  # fmt: skip

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, then key=value words.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ShowConfig = Annotated[
    bool, typer.Option("--print-config", help="Show the resolved configuration and where each value came from.")
]

_plugins: list[str] = []
_INTERRUPTED = "interrupted; the same command goes on where this one stopped, finished runs are kept"


@app.callback()
def root(
    plugin: Annotated[
        list[str] | None, typer.Option(help="A .py file or a module with routers of your own; may be repeated.")
    ] = None,
) -> None:
    """Options that stand before the command."""
    _plugins[:] = plugin or []
    from routelab.core.plugins import load_plugin

    for spec in _plugins:
        load_plugin(spec)


_SWEEPS = ("study", "storage", "trials", "tuning_flops", "trial_seeds", "objectives", "sampler", "pruner", "search")
_OF_OTHERS = {
    "compare": dict.fromkeys(_SWEEPS, "routelab sweep run")
    | {"arm": "routelab train; compare takes arms, such as arms=[dense,switch]", "seed": "routelab train; compare takes seeds"},
    "train": dict.fromkeys(_SWEEPS, "routelab sweep run")
    | {"arms": "routelab compare; train takes one arm, such as arm=switch", "seeds": "routelab compare; train takes seed"}
    | dict.fromkeys(("dense_ladder", "budget_ladder", "dense_budgets", "isoflop", "verdict", "workers"), "routelab compare"),
}
"""Keys that a command does not read, and which does: in a file they may wait for it, among the words they would be lost."""


def resolve_words(words: list[str] | None, command: str = "") -> Any:
    """The configuration that the words of a command make, with the plugins that stand before the command.

    command: whose words they are, if it does not read all keys.
    """
    from routelab.config.resolve import resolve

    words = list(words or [])
    path = words.pop(0) if words and "=" not in words[0] else None
    if path == "":
        raise UsageError("argument '' is neither a configuration file nor key=value")
    _only_settings(words, "a configuration file")
    for word in words:
        other = _OF_OTHERS.get(command, {}).get(word.partition("=")[0].partition(".")[0])
        if other is not None:
            raise UsageError(f"{word} is a key of {other}")
    return resolve(path or (), words, _spelled())


def _only_settings(words: list[str], before: str) -> None:
    for word in words:
        if "=" not in word:
            raise UsageError(f"argument {word!r} is not key=value; {before} comes first")


def _spelled() -> list[str]:
    """The plugins that stand before the command, as every process finds them."""
    import os

    return [os.path.abspath(name) if name.endswith(".py") else name for name in _plugins]


@app.command(name="compare")
def compare_command(
    words: Words = None,
    as_json: AsJson = False,
    print_config: ShowConfig = False,
    isoflop: Annotated[bool, typer.Option(help="Every arm at every size of the ladder, with equal training FLOPs.")] = False,
    audit: Annotated[bool, typer.Option(help="Train nothing: count one step of every arm in three ways.")] = False,
) -> None:
    """Compare several arms over paired seeds at matched FLOPs: table, verdicts, MLflow runs, report.

    Example: routelab compare data=mnist5k seeds=3 'arms=[dense,switch,soft]'
    """
    from routelab.cli import output as screen

    resolved = resolve_words([*(words or []), *(["isoflop=true"] if isoflop else [])], "compare")
    if print_config:
        return _show_config(resolved, as_json)
    if audit:
        raise typer.Exit(screen.audit(resolved, as_json))
    _carry_out(resolved, as_json)


def _show_config(resolved: Any, as_json: bool) -> None:
    from routelab.cli.output import print_json

    if as_json:
        print_json(resolved.rows())
    else:
        typer.echo(resolved.describe())


def _carry_out(resolved: Any, as_json: bool) -> None:
    """Run a comparison, show it, and leave with its exit code."""
    from routelab.cli import output as screen

    done = screen.compare(resolved, quiet=as_json)
    if as_json:
        screen.print_json(done.summary)
    raise typer.Exit(1 if done.failed else 0)


@app.command(name="distil")
def distil_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The teacher: a run's folder, cell or MLflow id; {seed} is the student's seed.")
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="into, temperature, weight, or what `compare` takes.")
    ] = None,
    as_json: AsJson = False,
    print_config: ShowConfig = False,
) -> None:
    """Train a small model on a run's outputs, and on the data alone at the same training FLOPs: does a mixture teach?

    Example: routelab distil results/language/topk-s0 into=dense seeds=6 temperature=2
    """
    from routelab.comparison.distillation import distillation

    _only_settings(words or [], "RUN")
    resolved = distillation(run, words or [], _spelled())
    if print_config:
        return _show_config(resolved, as_json)
    _carry_out(resolved, as_json)


@app.command(name="train")
def train_command(words: Words = None, as_json: AsJson = False, print_config: ShowConfig = False) -> None:
    """Train one arm with one seed.

    Example: routelab train arm=top2 data=digits seed=1 budget.steps=500
    """
    from routelab.cli import output as screen

    resolved = resolve_words(words, "train")
    if print_config:
        return _show_config(resolved, as_json)
    run = screen.train(resolved, quiet=as_json)
    if as_json:
        screen.print_json({key: value for key, value in run.record.items() if key not in ("curve", "load")})
    raise typer.Exit(0 if run.record["status"] == "ok" else 1)


Store = Annotated[str, typer.Option(help="The tracking store, where RUN is the id of a run in MLflow.")]
_STORE = "sqlite:///results/mlflow.db"
_RUN = "A run's folder, one of a comparison (results/NAME/ARM-sSEED), a cell's address, or an id in MLflow."


@app.command(name="report")
def report_command(
    experiments: Annotated[
        list[str],
        typer.Argument(metavar="EXPERIMENT...", help="Names in results/, or folders. Several: arms over all of them."),
    ],
    as_json: AsJson = False,
) -> None:
    """Make a comparison's report anew; or, of several comparisons, one table over their data sets.

    Example: routelab report digits letter flights
    """
    from routelab.cli import run_commands as runs

    runs.report(experiments, as_json)


@app.command(name="replay")
def replay_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    uri: Store = _STORE,
    as_json: AsJson = False,
) -> None:
    """Train a recorded run again, and compare its losses bit for bit.

    Example: routelab replay results/cells/0123456789abcdef0123
    """
    from routelab.cli import run_commands as runs

    raise typer.Exit(runs.replay(run, uri, as_json))


@app.command(name="explain")
def explain_command(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help=_RUN)],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Likewise.")],
    uri: Store = _STORE,
    as_json: AsJson = False,
) -> None:
    """Say what differs between two recorded runs: settings, code and versions, results.

    Example: routelab explain results/digits/switch-s0 results/digits/switch-s1
    """
    from routelab.cli import run_commands as runs

    raise typer.Exit(runs.explain(first, second, uri, as_json))


@app.command(name="analyze")
def analyze_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    uri: Store = _STORE,
    output: Annotated[str | None, typer.Option(help="Where the page goes (RUN's folder, in analysis/).")] = None,
    examples: Annotated[int | None, typer.Option(help="Of the test split (as many as hold 32768 tokens).")] = None,
    as_json: AsJson = False,
) -> None:
    """What the experts of a routed run specialise in: by domain, class and byte; paths; the loss without each of them.

    Example: routelab analyze results/language/topk-s0
    """
    from routelab.cli.analysis_commands import analyze

    analyze(run, uri, output, examples, as_json)


@app.command(name="clock")
def clock_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its cell's address, or its id in MLflow.")],
    uri: Store = _STORE,
    output: Annotated[str | None, typer.Option(help="Where numbers and figures go (RUN's folder, in clock/).")] = None,
    sizes: Annotated[str, typer.Option(help="Batch sizes, in examples (of texts: windows).")] = "1,4,16,64,256,1024,4096",
    rounds: Annotated[int, typer.Option(help="Readings of each model at each size, in turns; 6 or more give intervals.")] = 15,
    longest: Annotated[float, typer.Option(help="Seconds of a pass after which larger batches are left out.")] = 3.0,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="On one thread, whose time at work is counted: for a busy machine.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16 (on a GPU bfloat16, else float32).")] = None,
    as_json: AsJson = False,
) -> None:
    """When a mixture is slower although it computes less: latency against dense models of equal FLOPs and of equal parameters.

    Example: routelab clock results/language/topk-s0 --sizes 1,16,256
    """
    from routelab.cli.analysis_commands import clock

    options = {"rounds": rounds, "longest": longest, "cpu_time": cpu_time, "precision": precision}
    clock(run, uri, output, sizes, options, as_json)


@app.command(name="serve-cost")
def serve_cost_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs' folders, cells' addresses, or ids in MLflow.")],
    slots: Annotated[str | None, typer.Option(help="Experts in memory, such as 1,4,8 (from one to all).")] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="So many for each layer, not for all together.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the kernel's copies of experts before each read (Linux).")] = False,
    prompt: Annotated[int | None, typer.Option(help="Positions before the first that is decoded (half of them).")] = None,
    steps: Annotated[int, typer.Option(help="Steps that are timed for each setting; 0 times nothing.")] = 64,
    uri: Store = _STORE,
    output: Annotated[str | None, typer.Option(help="Where it goes (RUN's folder, in serving/; results/serving).")] = None,
    examples: Annotated[int | None, typer.Option(help="Of the test split (as many as hold 32768 tokens).")] = None,
    as_json: AsJson = False,
) -> None:
    """What a mixture costs when not all experts fit in memory: bytes read per token, hit rate and latency.

    Example: routelab serve-cost results/language/hash-s0 results/language/topk-s0
    """
    from routelab.cli.analysis_commands import serve_cost

    options = {"slots": slots, "per_layer": per_layer, "cold": cold, "prompt": prompt, "steps": steps}
    serve_cost(runs, uri, output, examples, options, as_json)


@app.command(name="list")
def list_command(
    kind: Annotated[str | None, typer.Argument(metavar="[routers|experts|backbones|baselines|data|presets]")] = None,
    as_json: AsJson = False,
) -> None:
    """List what is registered, with its origin.

    Example: routelab list routers
    """
    from routelab.cli import output as screen

    screen.listing(kind, as_json)


app.add_typer(sweep, name="sweep")

check = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="Hold a part against the rules of its kind.\n\nExample: routelab check router topk",
)  # fmt: skip
app.add_typer(check, name="check")


@check.command(name="router")
def check_router_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered router, built in or a plugin's.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the router.")] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="Also train a step in two processes (some ten seconds).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Test every rule that routers must keep on one router; 1 if one is broken.

    Example: routelab check router topk top_k=1 renormalize=false
    """
    from routelab.cli.check_command import check_router

    raise typer.Exit(check_router(name, words or [], as_json, _plugins if processes else None))


@app.command(name="count")
def count_command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET|CONFIG] [KEY=VALUE]...", help="A preset, or what `compare` takes.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Of a preset: positions that a token sees (4096).")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of a preset: how weights are stored (bf16), such as fp8, mxfp4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Parameters, active parameters and FLOPs, without training: of a published model, or of a configuration's arms as matched.

    Example: routelab count mixtral-8x7b --precision fp8 --context 32768
    """
    from routelab.cli import count_command as count

    name = count.named_preset(words or [])
    if name is not None:
        count.count_preset(name, context, precision, as_json)
        return
    for option, value in (("--context", context), ("--precision", precision)):
        if value is not None:
            raise UsageError(
                f"{option} {value} goes with a preset; the arms of a configuration have their data's own positions"
            )
    raise typer.Exit(count.count_arms(resolve_words(words), as_json))


@app.command(name="new")
def new_command(
    kind: Annotated[str, typer.Argument(metavar="router", help="What to write; there is a template for a router.")],
    name: Annotated[str, typer.Argument(help="The router's name, and the folder's.")],
    into: Annotated[str, typer.Option(help="The folder to write it into.")] = ".",
    as_json: AsJson = False,
) -> None:
    """Write an installable package with a router of your own, which works as it is.

    Example: routelab new router my_idea
    """
    from routelab.cli import output as screen

    screen.new(kind, name, into, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, and what would go wrong.

    Example: routelab doctor
    """
    from routelab.cli.doctor_command import examine

    raise typer.Exit(examine(as_json))


@app.command()
def ui(
    uri: Annotated[str, typer.Option(help="The tracking store.")] = _STORE,
    port: Annotated[int, typer.Option(help="The port on 127.0.0.1.")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Serve the MLflow UI on 127.0.0.1 over the tracking store.

    Example: routelab ui --port 5001
    """
    from routelab.cli import output as screen

    raise typer.Exit(screen.serve(uri, port, as_json))


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
