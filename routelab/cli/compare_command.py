"""`routelab compare`: several arms over paired seeds, or one audited training step of each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from routelab.cli.arguments import JsonOption, OverridesArg, PrintConfigOption, resolve_overrides
from routelab.core.number_format import format_count, format_level, format_optional, format_units


def compare_command(
    overrides: OverridesArg = None,
    as_json: JsonOption = False,
    print_config: PrintConfigOption = False,
    isoflop: Annotated[bool, typer.Option(help="Every arm at every size of the ladder, with equal training FLOPs.")] = False,
    audit: Annotated[bool, typer.Option(help="Train nothing: count one step of every arm in three ways.")] = False,
) -> None:
    """Compare several arms over paired seeds at matched FLOPs: table, verdicts, MLflow runs, report.

    Example: routelab compare data=mnist5k seeds=3 'arms=[dense,switch,soft]'
    """
    from routelab.cli.output import show_config

    resolved = resolve_overrides([*(overrides or []), *(["isoflop=true"] if isoflop else [])], "compare")
    if print_config:
        return show_config(resolved, as_json)
    if audit:
        raise typer.Exit(print_audit(resolved, as_json))
    compare_and_exit(resolved, as_json)


def compare_and_exit(resolved: Any, as_json: bool) -> None:
    """Run a comparison, print it, and end the command.

    Args:
        resolved: Configuration of the comparison.
        as_json: Whether to print the summary as JSON instead of text.

    Raises:
        typer.Exit: with code 1 if a run failed, otherwise 0.
    """
    from routelab.cli.output import print_json

    comparison = compare(resolved, quiet=as_json)
    if as_json:
        print_json(comparison.summary)
    raise typer.Exit(1 if comparison.failed else 0)


def compare(resolved: Any, quiet: bool = False) -> Any:
    """Run a comparison and print what it found."""
    from routelab.cli.output import console, print_table
    from routelab.cli.progress import watching
    from routelab.comparison.compare import carry_out
    from routelab.comparison.prepared_comparison import plan

    out = console(quiet)
    ready = plan(resolved)
    out.print(f"{resolved.name}: {announcement(ready)}")
    with watching(out) as show:
        done = carry_out(ready, show)
    if done.reused:
        out.print(f"{done.reused} of {len(done.records)} runs were already there and were not trained again")
    print_table(out, done.summary)
    out.print(done.summary["sentence"])
    from routelab.report.arm_labels import marked

    for label, arm in done.summary["arms"].items():
        if label != done.summary["reference"]:
            out.print(f"  {marked(label, arm['marks'])}: {arm['verdict']}")
    for note in ("withdrawal", "split_note"):
        if done.summary[note]:
            out.print(done.summary[note])
    for line in pair_lines(done.summary):
        out.print(line)
    for label, tuned in done.summary["tuned"].items():
        tried = ", ".join(f"{rate} ({format_optional(loss, '.4f')})" for rate, loss in tuned["validation"].items())
        edge = "; the best lies at the edge of what was tried" if tuned["edge"] else ""
        spent = f"{format_count(tuned['flops'])}FLOPs for all"
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


def announcement(ready: Any) -> str:
    """Describe the runs of a planned comparison, their cost, and the effect that they can detect."""
    from routelab.comparison.estimate import outlook

    config, ahead = ready.resolved.config, outlook(ready)
    seeds = len(ready.seeds)
    counted = f"{seeds} to {max(seeds, config.statistics.max_seeds)}" if config.seeds == "auto" else str(seeds)
    arms = format_units(len(ready.labels), "arm")
    text = f"{arms} x {counted} {'seed' if counted == '1' else 'seeds'} on {config.data['name']}"
    earlier = ready.earlier
    goes_on = config.seeds == "auto" or earlier.is_sequential(ready.seeds)
    beside = len(ready.rows) - len(ready.labels)
    if beside:
        text += f", and {beside} rows of the dense ladder or of other budgets"
    if earlier.withdrawn and goes_on:
        text += f"; judged before with {earlier.withdrawn['seeds']} seeds, whose verdicts will be withdrawn"
    if not ahead.runs:
        return f"{text}; every run is there already"
    costs = [f"{ahead.runs} runs to train"]
    if ahead.flops:
        costs.append(f"{format_count(ahead.flops)}FLOPs")
    if ahead.uncounted:
        costs.append(f"{ahead.uncounted} of them not counted in FLOPs")
    if ahead.seconds is not None:
        minutes = ahead.seconds / 60
        costs.append(f"about {minutes:.0f} min if nothing else runs here" if minutes >= 1.5 else "less than 2 min")
    text += f"; {', '.join(costs)}"
    over_seeds = "seeds" in config.statistics.uncertainty and not goes_on
    if ahead.effect is not None and len(ready.labels) > 1 and over_seeds:
        text += f"; over seeds alone, differences of {ahead.effect:.1f} standard deviations between seeds would be found 8 times in 10"
    return text


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
    """Return the verdicts on arms that were judged against each other, below a heading."""
    from routelab.comparison.summary_text import name_tests

    pairs = summary.get("pairs") or ()
    if not pairs:
        return []
    judged = any(pair["state"] for pair in pairs)
    tests = name_tests({str(number): pair for number, pair in enumerate(pairs)}, summary["sequential"], summary["unit"])
    test = f" ({tests}, level {format_level(summary['level'])})" if judged else ""
    return [
        f"In pairs, which are a family of claims of their own{test}:",
        *(f"  {pair['arm']}: {pair['verdict']}" for pair in pairs),
    ]


def frontier_line(frontier: dict[str, Any]) -> str:
    """The dense endpoints by rising FLOPs; those that are dearer than a better one are in brackets."""
    front = [tuple(point) for point in frontier["front"]]
    texts = []
    for point in sorted(frontier["points"], key=lambda point: point["flops"]):
        text = f"{point['label']} {format_count(point['flops'])}FLOPs {point['loss']:.4f}"
        texts.append(text if (point["flops"], point["loss"]) in front else f"({text})")
    return ", ".join(texts)


def yardstick_lines(summary: dict[str, Any]) -> list[str]:
    """What else reaches which value of the metric on the same test split."""
    return [
        f"Yardstick: {each['name']} has {each['metric']} {each['value']:.4f} ({each['note']})"
        for each in summary.get("yardsticks") or ()
    ]


def print_audit(resolved: Any, as_json: bool) -> int:
    """Print three counts of one training step of every arm; exit code 1 if they differ by more than a percent."""
    from dataclasses import asdict

    from rich.table import Table

    from routelab.cli.output import console, print_json
    from routelab.comparison.audit import TOLERANCE, audit
    from routelab.comparison.prepared_comparison import plan

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
