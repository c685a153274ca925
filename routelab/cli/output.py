"""What commands show on a terminal: progress, tables, paths."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from routelab.core.errors import UsageError, unknown
from routelab.records.json_io import plain


def console(quiet: bool = False) -> Console:
    """A console that never cuts text when its output is not a terminal."""
    terminal = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=False)
    return terminal if terminal.is_terminal else Console(quiet=quiet, highlight=False, markup=False, width=220)


def print_json(value: Any) -> None:
    """Print a value for machines, on one line. JSON has no NaN: it becomes null, as infinities do."""
    print(json.dumps(plain(value), default=str), flush=True)


@contextlib.contextmanager
def watching(out: Console) -> Iterator[Any]:
    """A progress bar on a terminal; elsewhere a line every ten seconds, and less often the longer it takes."""
    if out.is_terminal and not out.quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=out) as bar:
            task = bar.add_task("training", total=1.0)

            def show(done: int, total: int, share: float) -> None:
                bar.update(task, completed=share, description=f"{done}/{total} runs")

            yield show
        return
    started = said = time.monotonic()

    def tell(done: int, total: int, share: float) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > max(10.0, (now - started) / 20) and share > 0:
            said = now
            # Of the first seconds most go into starting the workers, which says nothing about the rest.
            left = f", about {(now - started) * (1 - share) / share:.0f} s left" if share >= 0.02 else ""
            out.print(f"{done}/{total} runs, {share:.0%} of the work{left}")

    yield tell


def announcement(ready: Any) -> str:
    """What a planned comparison will do, cost, and be able to show."""
    from routelab.comparison.estimate import outlook

    config, ahead = ready.resolved.config, outlook(ready)
    seeds = len({job.spec.seed for job in ready.jobs})
    counted = f"{seeds} to {max(seeds, config.verdict.most)}" if config.seeds == "auto" else str(seeds)
    text = f"{len(ready.labels)} arms x {counted} seeds on {config.data['name']}"
    beside = len(ready.rows) - len(ready.labels)
    if beside:
        text += f", and {beside} rows of the dense ladder or of other budgets"
    if not ahead.runs:
        return f"{text}; every run is there already"
    costs = [f"{ahead.runs} runs to train"]
    if ahead.flops:
        costs.append(f"{number_of(ahead.flops)}FLOPs")
    if ahead.uncounted:
        costs.append(f"{ahead.uncounted} of them not counted in FLOPs")
    if ahead.seconds is not None:
        minutes = ahead.seconds / 60
        costs.append(f"about {minutes:.0f} min if nothing else runs here" if minutes >= 1.5 else "about a minute")
    text += f"; {', '.join(costs)}"
    if ahead.effect is not None and len(ready.labels) > 1 and config.seeds != "auto":
        text += f"; differences of {ahead.effect:.1f} standard deviations between seeds will be found 8 times in 10"
    return text


def compare(resolved: Any, quiet: bool = False) -> Any:
    """Run a comparison and print what it found."""
    out = console(quiet)
    from routelab.comparison.compare import carry_out, plan

    ready = plan(resolved)
    out.print(f"{resolved.name}: {announcement(ready)}")
    with watching(out) as show:
        done = carry_out(ready, show)
    if done.reused:
        out.print(f"{done.reused} of {len(done.records)} runs were already there and were not trained again")
    out.print(table(done.summary))
    out.print(done.summary["sentence"])
    from routelab.report.arm_labels import marked

    for label, arm in done.summary["arms"].items():
        if label != done.summary["reference"]:
            out.print(f"  {marked(label, arm['marks'])}: {arm['verdict']}")
    for line in pair_lines(done.summary):
        out.print(line)
    for label, tuned in done.summary["tuned"].items():
        tried = ", ".join(f"{rate} ({_number(loss, '.4f')})" for rate, loss in tuned["validation"].items())
        edge = "; the best lies at the edge of what was tried" if tuned["edge"] else ""
        spent = f"{number_of(tuned['flops'])}FLOPs for all"
        out.print(f"  {label}: learning rate {tuned['rate']:g} chosen on validation from {tried}, {spent}{edge}")
    for line in inference_lines(done.summary):
        out.print(line)
    if done.summary["frontier"]:
        out.print("Dense frontier (training FLOPs, test loss): " + frontier_line(done.summary["frontier"]))
    out.print(done.summary["caveat"])
    for line in yardstick_lines(done.summary):
        out.print(line)
    for record in done.failed:
        out.print(f"FAILED {record['arm']} seed {record['seed']}: {record['error']}")
    resumed = [record for record in done.records if record.get("resumed_at") is not None]
    if resumed:
        runs = "1 run was" if len(resumed) == 1 else f"{len(resumed)} runs were"
        out.print(f"{runs} interrupted before, and went on from the last checkpoint")
    for problem in done.problems:
        out.print(f"problem: {problem}")
    out.print(f"Report: {done.output / 'report.html'}   Table: {done.output / 'results.csv'}")
    uri = resolved.config.tracking.uri
    if uri is not None:
        out.print(f"MLflow: {uri}, experiment {resolved.experiment!r} (routelab ui --uri {uri})")
    return done


def audit(resolved: Any, as_json: bool) -> int:
    """Print three counts of one training step of every arm; exit code 1 if they differ by more than a percent."""
    from dataclasses import asdict

    from routelab.comparison.audit import TOLERANCE, audit
    from routelab.comparison.compare import plan

    found, out = audit(plan(resolved)), console(quiet=as_json)
    if as_json:
        print_json([{**asdict(each), "worst": each.worst, "passed": each.passed} for each in found])
    grid = Table(header_style="")
    for name in ("arm", "ledger", "torch's counter", "rows x cost", "largest difference"):
        grid.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for each in found:
        if each.skipped:
            grid.add_row(each.arm, "n/a", "n/a", "n/a", each.skipped)
        else:
            third = "n/a" if each.rows is None else f"{each.rows:,.0f}"
            grid.add_row(each.arm, f"{each.ledger:,.0f}", f"{each.counter:,.0f}", third, f"{each.worst:.3%}")
    out.print(grid)
    for each in found:
        if not each.passed:
            what = f"does not know {', '.join(each.unknown)}" if each.unknown else f"is {each.worst:.2%} away from another"
            out.print(f"FAILED {each.arm}: one count of its FLOPs {what}")
    passed = all(each.passed for each in found)
    if passed:
        out.print(f"FLOPs executed in one training step: all counts agree within {TOLERANCE:.0%}")
    return 0 if passed else 1


def table(summary: dict[str, Any]) -> Table:
    """Paired means with intervals, and the triad of FLOPs, active and total parameters."""
    from routelab.report.arm_labels import marked

    metric = summary["metric"]
    out = Table(title=None, header_style="")
    # Without a reference there are no differences.
    against = [f"loss vs {summary['reference']}"] if summary["reference"] else []
    for name in ("arm", "test loss", metric, *against, "FLOPs/ex", "ratio", "train GFLOPs", "executed", "active", "total", "s",
                 "dropped", "load CV"):  # fmt: skip
        out.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for label, arm in summary["arms"].items():
        mark = "" if arm["n"] and not arm["failed"] else f" ({arm['failed']} failed)"
        out.add_row(
            marked(label, arm["marks"]) + mark,
            _mean(arm["loss"]), _mean(arm["metric"]), *([_change(arm["difference"])] if against else []), number_of(arm["flops_per_example"]),
            _number(arm["flops_ratio"], ".3f"), _number(arm["flops_model"], ".1f", 1e9), _number(arm["flops_executed"], ".1f", 1e9),
            _sized(arm["active_params"], arm["active_ratio"]), _sized(arm["total_params"], arm["total_ratio"]), _number(arm["seconds"], ".1f"),
            _number(arm["drop_rate"], ".1%"), _number(arm["load_cv"], ".2f"),
        )  # fmt: skip
    return out


def _sized(value: float | None, ratio: float | None) -> str:
    """A count, and how many times the reference's it is."""
    return number_of(value) if ratio is None else f"{number_of(value)} {ratio:.2f}x"


def inference_lines(summary: dict[str, Any]) -> list[str]:
    """Where an arm's predictions take clearly more or less time than the reference's although their FLOPs are alike."""
    base = (summary["arms"].get(summary["reference"]) or {}).get("inference") or {}
    lines = []
    for label, arm in summary["arms"].items():
        ratios = {size: seconds / base[size] for size, seconds in (arm.get("inference") or {}).items() if base.get(size)}
        if label != summary["reference"] and ratios:
            lines.append(f"{label} {'/'.join(f'{ratio:.1f}' for ratio in ratios.values())}")
    sizes = "/".join(base)
    return [f"Inference time over {summary['reference']}'s, at batch {sizes}: {', '.join(lines)}"] if lines else []


def pair_lines(summary: dict[str, Any]) -> list[str]:
    """What is said of arms that were judged against each other."""
    pairs = summary.get("pairs") or ()
    level = f"{summary['level']:g}".lstrip("0")
    tests = "sequential paired t-tests" if summary.get("sequential") else "paired t-tests"
    heading = [f"In pairs, which are a family of claims of their own ({tests} over seeds, level {level}):"] if pairs else []
    return heading + [f"  {pair['arm']}: {pair['verdict']}" for pair in pairs]


def frontier_line(frontier: dict[str, Any]) -> str:
    """The dense endpoints by rising FLOPs; those that are dearer than a better one are in brackets."""
    front = [tuple(point) for point in frontier["front"]]
    texts = []
    for point in sorted(frontier["points"], key=lambda point: point["flops"]):
        text = f"{point['label']} {number_of(point['flops'])}FLOPs {point['loss']:.4f}"
        texts.append(text if (point["flops"], point["loss"]) in front else f"({text})")
    return ", ".join(texts)


def yardstick_lines(summary: dict[str, Any]) -> list[str]:
    """What else reaches which value of the metric on the same test split."""
    return [
        f"Yardstick: {each['name']} has {each['metric']} {each['value']:.4f} ({each['note']})"
        for each in summary.get("yardsticks") or ()
    ]


def _mean(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    half = value["high"] - value["mean"]
    return f"{value['mean']:.4f}" + (f" ±{half:.4f}" if math.isfinite(half) else "")


def _change(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    low, mean, high = (math.expm1(value[part]) * 100 for part in ("low", "mean", "high"))
    return f"{mean:+.1f}% [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else f"{mean:+.1f}%"


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else format(value / unit, form)


def number_of(value: float | None) -> str:
    """A count in three digits and a letter: 1.5G."""
    if value is None:
        return "n/a"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}"


def train(resolved: Any, quiet: bool = False) -> Any:
    """Train one run and print its result."""
    out = console(quiet)
    from routelab.comparison.train_one import train as run_one

    with watching(out) as show:
        run = run_one(resolved, watch=lambda share: show(0, 1, share))
    record = run.record
    if record["status"] != "ok":
        out.print(f"FAILED {record['arm']} seed {record['seed']}: {record['error']}")
        return run
    quality = ", ".join(f"test {name} {value:.4f}" for name, value in record["test"].items())
    from routelab.report.arm_labels import marked, marks

    out.print(f"{marked(record['arm'], marks(record))} on {record['data']}, seed {record['seed']}: {quality}")
    out.print(
        f"{record['steps']} steps, {number_of(record['flops_model'])} FLOPs model, {number_of(record['flops_executed'])} executed, "
        f"{number_of(record['flops_per_example'])} per example, {number_of(record['active_params'])} active of "
        f"{number_of(record['total_params'])} parameters, {record['seconds']:.1f} s"
    )
    if record["resumed_at"] is not None:
        out.print(f"This run was interrupted, and went on from step {record['resumed_at']}")
    for problem in record["problems"]:
        out.print(f"problem: {problem}")
    out.print(f"Record and weights: {record['folder']}")
    return run


def listing(kind: str | None, as_json: bool) -> None:
    """`routelab list`: names, origins and first lines, without importing what is built in.

    What is not built in is imported, so that a plugin is not listed as if it worked.
    """
    from routelab.backbones.backbone_registry import BACKBONES
    from routelab.baselines.baseline_registry import BASELINES
    from routelab.core.registry import Registry
    from routelab.data.dataset_registry import DATA
    from routelab.experts.expert_registry import KINDS
    from routelab.presets import PRESETS
    from routelab.routers.router_registry import ROUTERS

    kinds: dict[str, Registry[Any]] = {
        "routers": ROUTERS,
        "experts": KINDS,
        "backbones": BACKBONES,
        "baselines": BASELINES,
        "data": DATA,
    }
    if kind not in (None, "presets", *kinds):
        raise unknown("kind", kind, (*kinds, "presets"))
    from routelab.routers.router_metadata import read

    known = read()
    rows = [
        {
            "name": name,
            "kind": title,
            "origin": registry.origin(name),
            "summary": registry.problem(name) or registry.summary(name),
            **(known.get(name, {}) if registry is ROUTERS and registry.origin(name) == "built in" else {}),
        }
        for title, registry in kinds.items()
        if kind in (None, title)
        for name in registry.names()
    ]
    if kind in (None, "presets"):
        rows += [
            {"name": name, "kind": "presets", "origin": "built in", "summary": preset.summary}
            for name, preset in PRESETS.items()
        ]
    if as_json:
        print_json(rows)
        return
    out = console()
    view = Table(header_style="")
    columns = _ROUTER_COLUMNS if kind == "routers" else {name: lambda row, name=name: row[name] for name in _COLUMNS}
    for column in columns:
        view.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        view.add_row(*(show(row) for show in columns.values()))
    out.print(view)


_COLUMNS = ("kind", "name", "origin", "summary")


def _matches(row: dict[str, Any]) -> str:
    """The references whose outputs this router's layer gives, and the largest difference."""
    gaps = {each["reference"]: each["outputs"] for each in row.get("parity", ())}
    return "; ".join(f"{name} to {gap:.0e}" if gap else f"{name} exactly" for name, gap in gaps.items())


_ROUTER_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "origin": lambda row: row["origin"],
    "causal": lambda row: _said(row.get("causal")),
    "batch-coupled": lambda row: _said(row.get("batch_coupled")),
    "matches": _matches,
    "paper": lambda row: row.get("paper") or "",
    "summary": lambda row: row["summary"].replace(f" ({row.get('paper')})", ""),
}
"""What is shown of a router; of a plugin's, dependence and parity are not recorded (`routelab check router` tests them)."""


def _said(value: bool | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "yes" if value else "no"


def new(kind: str, name: str, into: str, as_json: bool) -> None:
    """`routelab new`: write the package, and say what to do with it."""
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


def serve(uri: str, port: int, as_json: bool = False) -> int:
    """Run the MLflow UI until Ctrl-C. as_json: say where as JSON, before it answers there."""
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
