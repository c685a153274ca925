"""The report of a comparison: what stands on its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.core.number_format import (
    NO_VALUE,
    format_change,
    format_interval_parts,
    format_number,
    format_short_percent,
    format_with_ratio,
    pluralise,
)
from routelab.records.json_io import write_text
from routelab.report.arm_labels import marked
from routelab.report.html_page import rendered
from routelab.report.interval_labels import (
    ERROR_KEYS,
    SEEDS_ALONE,
    describe_intervals,
    intervals_of,
    is_older,
    larger_error,
    sample_of,
    sources_of,
    unit_of,
)
from routelab.report.plots.plot_style import Drawn, inline_svg
from routelab.report.plots.report_plots import figures_of, save_figures

_DIFF_LIMIT = 100_000


def write_report(path: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], figures: bool = True) -> None:
    """Writes the report of a comparison to `path`, and its figures as PNG and CSV to `figures/` beside it.

    records: of the arms, and of the ladder's rungs and other budgets if there are any. `figures=False` leaves the drawings
    out, and needs no matplotlib.
    """
    from markupsafe import Markup

    drawn = figures_of(summary, records) if figures else []
    arms = set(summary.get("arms") or ())
    mine = [record for record in records if record.get("arm") in arms]
    entries = summary.get("arms") or {}
    columns = _error_columns(summary)
    by_signs = _has_sign_flips(summary)
    text = rendered(
        Path(__file__).with_name("report.html"),
        title=f"Comparison {summary.get('name') or ''}".strip(),
        data=summary.get("data") or NO_VALUE,
        metric=summary.get("metric") or "metric",
        reference=summary.get("reference"),
        seeds_line=_seeds_line(summary.get("seeds") or []),
        sentence=summary.get("sentence"),
        withdrawal=summary.get("withdrawal"),
        split_note=summary.get("split_note"),
        seeds_alone=f"{SEEDS_ALONE}." if is_older(summary) and summary.get("reference") else None,
        caveat=summary.get("caveat"),
        verdicts=[
            (marked(label, arm.get("marks")), arm["verdict"])
            for label, arm in (summary.get("arms") or {}).items()
            if label != summary.get("reference") and arm.get("verdict")
        ],
        intervals=intervals_of(summary),
        own_intervals=describe_intervals(summary, {label: arm.get("loss") for label, arm in entries.items()}, sequential=False),
        error_columns=[*columns.values(), "Sample"] if columns else [],
        by_signs=by_signs,
        arms=[_row(label, arm, summary, columns, by_signs) for label, arm in entries.items()],
        costs=_costs(summary.get("arms") or {}),
        tuning=_tuning(summary),
        yardsticks=[
            (each["name"], f"{each['metric']} {format_number(each['value'], 4)}", each["note"])
            for each in summary.get("yardsticks") or ()
        ],
        # Drawn here, and every text in it escaped by matplotlib.
        drawn=[(each.title, each.alt, each.note, Markup(inline_svg(each.figure, each.name)), _tabled(each)) for each in drawn],
        quality=_quality(summary.get("arms") or {}),
        domains=_domains(entries),
        domain_intervals=_domain_intervals(summary),
        failures=_failures(records),
        provenance=_provenance(records),
        configs=_configs(mine),
        diffs=_distinct(str(diff)[:_DIFF_LIMIT] for diff in _each(records, "git_diff") if diff),
    )
    write_text(path, text)
    save_figures(drawn, path.parent / "figures")


Grid = tuple[list[str], list[list[str]]]
"""Headings and rows, the first cell of which is the row's own heading."""


def _tabled(drawn: Drawn) -> Grid | None:
    """Headings and rows of the table below a figure, None if it has none."""
    if not drawn.tabled:
        return None
    heading, *rows = drawn.table
    texts = [[cell if isinstance(cell, str) else format_number(cell, 4) for cell in row] for row in rows]
    return [str(name).replace("_", " ") for name in heading], texts


def _error_columns(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the sources of uncertainty of which the differences have standard errors, and the headings of their columns."""
    headings = {"seeds": "SE over seeds", "examples": f"SE over {pluralise(unit_of(summary))}"}
    arms = (summary.get("arms") or {}).values() if summary.get("reference") else ()
    covered = {source for arm in arms for source in sources_of(arm.get("difference"))}
    return {source: heading for source, heading in headings.items() if source in covered}


def _has_sign_flips(summary: Mapping[str, Any]) -> bool:
    """Return whether the interval of an arm covers seeds alone, so that its sign-flip p is of the same claim."""
    return is_older(summary) or any(arm.get("covered") == ["seeds"] for arm in (summary.get("arms") or {}).values())


def _row(
    label: str, arm: Mapping[str, Any], summary: Mapping[str, Any], columns: Mapping[str, str], by_signs: bool
) -> dict[str, Any]:
    """Return the cells of an arm in the table of results.

    Args:
        label: Label of the arm.
        arm: Entry of the arm in the summary.
        summary: Summary of the comparison.
        columns: Sources of uncertainty that have a column.
        by_signs: Whether there is a column of sign-flip p-values.
    """
    compared = bool(summary.get("reference"))
    intervals: list[dict[str, Any]] = [
        {**format_interval_parts(arm.get("loss")), "notes": ()},
        {**format_interval_parts(arm.get("metric")), "notes": ()},
    ]
    if compared:
        intervals.append({**format_interval_parts(arm.get("difference"), signed=True), "notes": arm.get("notes") or ()})
    return {
        "label": label,
        "marks": ", ".join(arm.get("marks") or ()),
        "n": arm.get("n", 0),
        "failed": _failed(arm),
        "intervals": intervals,
        "errors": _standard_errors(arm.get("difference"), columns),
        "sample": [sample_of(arm.get("difference"), unit_of(summary)) or NO_VALUE] if columns else [],
        "claims": _claims(arm, by_signs, is_older(summary)) if compared else [],
    }


def _failed(arm: Mapping[str, Any]) -> str:
    """Return how many seeds of an arm failed, and how many of them diverged; "" if none did."""
    failed, diverged = arm.get("failed") or 0, arm.get("diverged") or 0
    others = [f"{failed - diverged} failed"] if failed > diverged else []
    return ", ".join([*([f"{diverged} diverged"] if diverged else []), *others])


def _standard_errors(difference: Mapping[str, Any] | None, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the cells of a difference's standard errors, and whether each is the larger of two."""
    larger = larger_error(difference)
    keys = [ERROR_KEYS[source] for source in columns]
    return [{"text": format_number((difference or {}).get(key), 2), "is_larger": key == larger} for key in keys]


def _costs(arms: Mapping[str, Any]) -> Grid:
    """What arms cost and how they load their experts."""
    sizes = list(dict.fromkeys(size for arm in arms.values() for size in arm.get("inference") or {}))
    headings = ["Arm", "FLOPs per example", "Measured", "Ratio", "Active parameters", "All parameters", "Training FLOPs",
                "Executed FLOPs", "Steps", "Seconds", "Dropped", "Load CV", "Causal", "Peak memory"]  # fmt: skip
    headings += [f"Inference, batch {' / '.join(sizes)}"] if sizes else []
    rows = []
    for label, arm in arms.items():
        ratio = format_number(arm.get("flops_ratio"))
        before = f" after {format_number(arm.get('initial_flops'))}" if arm.get("initial_flops") else ""
        row = [
            label,
            format_number(arm.get("flops_per_example")),
            format_number(arm.get("flops_per_example_measured")),
            ratio if ratio == NO_VALUE else f"{ratio}\u00d7",
            format_with_ratio(arm.get("active_params"), arm.get("active_ratio")),
            format_with_ratio(arm.get("total_params"), arm.get("total_ratio")),
            f"{format_number(arm.get('flops_model'))}{before}",
            # A reference outside the loop takes no steps.
            *(format_number(arm.get(key) or None) for key in ("flops_executed", "steps", "seconds")),
            format_short_percent(arm.get("drop_rate")),
            format_number(arm.get("load_cv")),
            {True: "yes", False: "no"}.get(arm.get("causal"), NO_VALUE),
            format_number((arm.get("memory") or {}).get("peak")),
        ]
        timed = arm.get("inference") or {}
        taken = (
            " / ".join(format_number(1e6 * timed[size]) if size in timed else NO_VALUE for size in sizes) if timed else NO_VALUE
        )
        rows.append([*row, *([taken] if sizes else [])])
    return headings, rows


def _tuning(summary: Mapping[str, Any]) -> Grid | None:
    """What choosing settings cost, and what was chosen, of arms that had a choice; None if none had."""
    rows = []
    for label, found in (summary.get("tuned") or {}).items():
        tried = ", ".join(f"{float(rate):g} ({format_number(loss, 4)})" for rate, loss in found["validation"].items())
        edge = "; at the edge of what was tried" if found["edge"] else ""
        rows.append([label, format_number(found["flops"]), f"learning rate {found['rate']:g} of {tried}{edge}"])
    for label, found in (summary.get("tuning") or {}).items():
        trials = f"{found['complete']} complete trials, {found['pruned']} pruned, {found['failed']} failed"
        settings = ", ".join(
            f"{key} {value if isinstance(value, str) else format_number(value)}" for key, value in _best(found).items()
        )
        rows.append([label, format_number(found["flops"]), f"{settings or 'nothing'} by {trials}"])
    return (["Arm", "Tuning FLOPs", "Chosen"], rows) if rows else None


def _best(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return (found.get("best") or {}).get("settings") or {}


_QUALITY = {
    "calibration": {"nll": "NLL", "brier": "Brier", "ece": "ECE"},
    "diversity": {"members": "Members", "disagreement": "Disagreement", "error_correlation": "Error correlation",
                  "member_loss": "Member's loss"},
}  # fmt: skip


def _quality(arms: Mapping[str, Any]) -> Grid | None:
    """Headings and rows of calibration and diversity, of what there is; None if there is none."""
    wanted = [
        (group, key, title)
        for group, titles in _QUALITY.items()
        for key, title in titles.items()
        if any((arm.get(group) or {}).get(key) is not None for arm in arms.values())
    ]
    if not wanted:
        return None
    rows = [
        [label, *(format_number((arm.get(group) or {}).get(key)) for group, key, _ in wanted)] for label, arm in arms.items()
    ]
    return ["Arm", *(title for _, _, title in wanted)], rows


def _domains(arms: Mapping[str, Any]) -> Grid | None:
    """Domains, and the arms' mean losses on them with differences from the reference in percent; None if there is none."""
    names = list(next((arm["by_domain"] for arm in arms.values() if arm.get("by_domain")), {}))
    if len(names) < 2:
        return None
    rows = []
    for label, arm in arms.items():
        each = [(arm.get("by_domain") or {}).get(name) or {} for name in names]
        rows.append(
            [
                label,
                *(f"{format_number((d.get('loss') or {}).get('mean'), 4)} {format_change(d.get('difference'))}" for d in each),
            ]
        )
    return ["Arm", *names], rows


def _domain_intervals(summary: Mapping[str, Any]) -> str:
    """Return what the intervals of the differences by domain are."""
    estimates = {
        f"{label} on {domain}": result.get("difference")
        for label, arm in (summary.get("arms") or {}).items()
        for domain, result in (arm.get("by_domain") or {}).items()
    }
    return describe_intervals(summary, estimates)


def _claims(arm: Mapping[str, Any], by_signs: bool, older: bool) -> list[str]:
    """Return p-values, leverage, dense size, time and the cost of the reference's loss of an arm, as far as there are any.

    Args:
        arm: Entry of the arm in the summary.
        by_signs: Whether there is a column of sign-flip p-values, which arms have whose intervals cover seeds alone.
        older: Whether the summary is of an earlier version.
    """
    found = [format_number(arm.get("p_holm"), 2)]
    if by_signs:
        of_seeds = older or arm.get("covered") == ["seeds"]
        found.append(format_number(arm.get("p_sign_flip") if of_seeds else None, 2))
    place, time = arm.get("leverage"), arm.get("time_ratio")
    if place:
        own, size = place["own"], place["effective_size"]
        found.append(f"{_BOUNDS[own['bound']]}{format_number(own['mean'])}")
        found.append(NO_VALUE if size is None else f"{_BOUNDS[size['bound']]}{format_number(size['params'])}")
    else:
        found += [NO_VALUE, NO_VALUE]
    found.append(NO_VALUE if time is None else f"{format_number(time['mean'])}\u00d7")
    return [*found, _cost_of_target(arm.get("to_target") or {})]


def _cost_of_target(target: Mapping[str, Any]) -> str:
    """Return the ratios of FLOPs and seconds up to the reference's loss, or how many seeds reached it if not every seed did.

    Args:
        target: `to_target` of an arm. Earlier versions averaged the ratios over the seeds that reached it, and have `censored`, the
            number of the other seeds.
    """
    reached, seeds = target.get("reached"), target.get("seeds")
    if target.get("censored"):
        reached = (target.get("flops") or {}).get("n", 0)
        seeds = reached + target["censored"]
    if reached is not None and reached < seeds:
        return f"{reached or 'none'} of {seeds} seed{'' if seeds == 1 else 's'} reached it"
    ratios = [format_number((target.get(key) or {}).get("mean")) for key in ("flops", "seconds")]
    return NO_VALUE if set(ratios) == {NO_VALUE} else " / ".join(ratios)


_BOUNDS = {"=": "", ">": "> ", "<": "< "}


def _seeds_line(seeds: Sequence[Any]) -> str:
    if not seeds:
        return "no seeds"
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _failures(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"arm": record.get("arm"), "seed": record.get("seed"), "error": record.get("error") or "no reason was recorded"}
        for record in records
        if record.get("status") != "ok"
    ]


def _each(records: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return [(record.get("provenance") or {}).get(key) for record in records]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _provenance(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name and distinct values: more than one says that the cells were not all made in one place."""
    revisions = [
        f"{revision}{' with uncommitted changes' if diff else ''}"
        for revision, diff in zip(_each(records, "git_revision"), _each(records, "git_diff"), strict=True)
        if revision
    ]
    commands = [
        command if isinstance(command, str) else " ".join(map(str, command)) for command in _each(records, "command") if command
    ]
    versions = [", ".join(f"{k} {v}" for k, v in table.items()) for table in _each(records, "versions") if table]
    rows = [
        ("Command", _distinct(commands)),
        ("Git revision", _distinct(revisions)),
        ("Data digest", _distinct(str(digest) for digest in _each(records, "data_digest") if digest)),
        ("Platform", _distinct(str(platform) for platform in _each(records, "platform") if platform)),
        ("Python", _distinct(str(python) for python in _each(records, "python") if python)),
        ("Versions", _distinct(versions)),
    ]
    return [(name, values or ["not recorded"]) for name, values in rows]


def _configs(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The configuration of each arm, as the first of its seeds had it."""
    import yaml

    found: dict[str, str] = {}
    for record in records:
        arm = str(record.get("arm"))
        if record.get("config") and arm not in found:
            found[arm] = yaml.safe_dump(_plain(record["config"]), sort_keys=False, allow_unicode=True)
    return [{"arm": arm, "text": text} for arm, text in found.items()]


def _plain(value: Any) -> Any:
    """The value in types that YAML knows; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    # Subclasses (numpy's floats, enumerations) are unknown to YAML.
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)
