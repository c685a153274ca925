"""Both standard errors in differences.csv, on the terminal, and in reports over several data sets."""

from __future__ import annotations

import csv
import json
from io import StringIO

import pytest
from pretended_runs import World
from rich.console import Console

from routelab.cli import compare_command, output
from routelab.cli.output import print_table, table
from routelab.cli.report_command import print_across
from routelab.comparison import compare as module
from routelab.comparison import comparison_runner
from routelab.comparison.compare import compare
from routelab.comparison.csv_export import write_differences
from routelab.comparison.verdict import notes_of
from routelab.config.resolve import resolve

COLUMNS = [
    "arm", "against", "domain", "metric", "difference", "low", "high", "standard_error", "degrees_of_freedom", "seed_error",
    "unit_error", "seeds", "units", "covered", "p", "p_holm", "p_equivalent", "supported_margin", "state", "withheld", "larger",
]  # fmt: skip


def words(folder, *more):
    return [f"output={folder}/results/mine", "tracking.uri=null", "budget.steps=40", "backbone.d_model=16", "backbone.depth=1",
            "backbone.heads=2", "experts.count=4", "arms=[dense,switch,top2]", *more]  # fmt: skip


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Return a function that makes comparisons happen in a world, and returns the words of one."""
    monkeypatch.setattr(module, "inference", lambda *given: {})

    def happen_in(runs, *more):
        monkeypatch.setattr(comparison_runner, "run_jobs", runs.run_jobs)
        return words(tmp_path, *more)

    return happen_in


def rows_of(folder):
    rows = list(csv.DictReader((folder / "results/mine/differences.csv").open()))
    return rows, {(row["arm"], row["against"], row["domain"], row["metric"]): row for row in rows}


def test_every_interval_has_a_row_in_full_precision(world, tmp_path):
    given = world(World(gain={"switch": 0.1}), "seeds=4", "statistics.pairs=[[switch,top2]]")
    summary = compare(given).summary
    rows, found = rows_of(tmp_path)
    assert list(rows[0]) == COLUMNS
    assert len(found) == len(rows), "no row stands twice"
    arms = ("dense", "switch", "top2")
    assert set(found) == {
        *((arm, "", domain, "loss") for arm in arms for domain in ("", "a", "b")),
        *((arm, "", "", "accuracy") for arm in arms),
        *((arm, "dense", domain, "log_loss") for arm in arms[1:] for domain in ("", "a", "b")),
        *((arm, "dense", "", "accuracy") for arm in arms[1:]),
        ("switch", "top2", "", "log_loss"), ("switch", "top2", "", "accuracy"),
    }  # fmt: skip
    entry, row = summary["arms"]["switch"], found["switch", "dense", "", "log_loss"]
    keys = {"difference": "mean", "seeds": "n"} | {
        name: name for name in ("low", "high", "standard_error", "degrees_of_freedom", "seed_error", "unit_error", "units")
    }
    assert {column: float(row[column]) for column in keys} == {column: entry["difference"][key] for column, key in keys.items()}
    assert (float(row["p"]), float(row["p_holm"])) == (entry["p_t"], entry["p_holm"])
    assert float(row["supported_margin"]) == entry["supported_margin"]
    assert (row["covered"], row["state"], row["withheld"], row["larger"]) == ("seeds+examples", entry["state"], "", "examples")
    of_domain = found["switch", "dense", "a", "log_loss"]
    assert float(of_domain["unit_error"]) == entry["by_domain"]["a"]["difference"]["unit_error"]
    assert (of_domain["units"], of_domain["p"], of_domain["state"]) == ("30", "", "")
    pair = summary["pairs"][0]
    assert float(found["switch", "top2", "", "log_loss"]["p_holm"]) == pair["p_holm"]
    assert float(found["switch", "top2", "", "accuracy"]["difference"]) == pair["metric_difference"]["mean"]
    assert float(found["dense", "", "", "loss"]["difference"]) == summary["arms"]["dense"]["loss"]["mean"]


def test_the_larger_source_covered_sources_and_withheld_verdicts_are_named(world, tmp_path):
    compare(world(World(seed_sd=2.0, unit_sd=0.01, diverged=(("top2", 1),)), "seeds=5"))
    _, found = rows_of(tmp_path)
    assert found["switch", "dense", "", "log_loss"]["larger"] == "seeds"
    row = found["top2", "dense", "", "log_loss"]
    assert (row["state"], row["withheld"], row["seeds"]) == ("withheld", "diverged", "4")
    compare(world(World(), "seeds=5", "statistics.uncertainty=[seeds]", f"output={tmp_path}/results/mine"))
    row = rows_of(tmp_path)[1]["switch", "dense", "", "log_loss"]
    assert (row["covered"], row["unit_error"], row["units"], row["larger"]) == ("seeds", "", "", "")


def test_bounds_that_are_not_finite_are_empty_and_arms_without_a_difference_have_no_row(tmp_path):
    nothing = dict.fromkeys(("standard_error", "degrees_of_freedom"), float("nan")) | dict.fromkeys(
        ("seed_error", "unit_error", "units")
    )
    loss = {"mean": 1.0, "low": float("-inf"), "high": float("inf"), "n": 1, **nothing}
    arm = {"loss": loss, "metric": None, "difference": None, "metric_difference": None, "by_domain": {}}
    summary = {"metric": "r2", "reference": "dense", "arms": {"dense": arm, "gone": {**arm, "loss": None}}, "pairs": []}
    write_differences(tmp_path / "d.csv", summary)
    (row,) = csv.DictReader((tmp_path / "d.csv").open())
    assert (row["arm"], row["difference"], row["low"], row["high"], row["standard_error"], row["covered"]) == (
        "dense",
        "1.0",
        "",
        "",
        "",
        "",
    )


def test_the_terminal_has_both_standard_errors_the_note_and_what_pairs_cover(world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    given = world(World(gain={"switch": 0.1}, unit_sd=0.3), "seeds=5", "statistics.pairs=[[switch,top2]]")
    summary = compare_command.compare(resolve(given)).summary
    printed = capsys.readouterr().out
    assert summary["split_note"]
    assert (
        "In pairs, which are a family of claims of their own (paired t-tests over seeds and test documents, Holm-adjusted, level .05):"
        in printed
    )
    heading = next(line for line in printed.splitlines() if "test loss" in line)
    names = [cell.strip() for cell in heading.strip("\u2503 ").split("\u2503")]
    assert names[names.index("loss vs dense") :][:3] == ["loss vs dense", "SE seeds", "SE documents"]
    assert names[-1] == "load CV"
    flat = " ".join(printed.split())
    assert summary["split_note"] in flat
    assert flat.index("  top2: ".strip()) < flat.index(summary["split_note"]) < flat.index("In pairs")
    assert "\u2026" not in printed, "nothing is cut"
    assert "withdrawn" not in printed


def test_a_withdrawn_verdict_is_printed_and_seeds_alone_have_one_column(world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    runs = World()
    alone = ("statistics.uncertainty=[seeds]", "statistics.pairs=[[switch,top2]]")
    compare_command.compare(resolve(world(runs, "seeds=3", *alone)))
    printed = capsys.readouterr().out
    assert "SE seeds" in printed
    assert "SE documents" not in printed
    assert "claims of their own (paired t-tests over seeds, Holm-adjusted, level .05)" in printed
    compare_command.compare(resolve(world(runs, "seeds=5", *alone)))
    printed = capsys.readouterr().out
    assert "The verdicts at 3 seeds are withdrawn" in " ".join(printed.split())
    assert "claims of their own (sequential paired t-tests over seeds, Bonferroni, level .05)" in printed


@pytest.fixture
def finished(world):
    return compare(world(World(), "seeds=3")).summary


def printed_at(summary, width, terminal=True):
    out = Console(file=StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False, markup=False)
    print_table(out, summary)
    return out, out.file.getvalue()


def test_a_narrow_terminal_leaves_columns_out_and_says_which(finished):
    full = {str(column.header) for column in table(finished).columns}
    for width in (80, 120, 250):
        _, text = printed_at(finished, width)
        assert "\u2026" not in text
        shown = {cell.strip() for cell in text.splitlines()[1].strip("\u2503").split("\u2503")}
        assert {"arm", "test loss", "loss vs dense"} <= shown <= full
        assert ("Too narrow for" in text) == (shown != full)
        assert ("SE seeds" in shown) == ("SE documents" in shown)
    assert shown == full
    assert "executed" in " ".join(printed_at(finished, 80)[1].split("Too narrow for")[1].split())


def test_outside_a_terminal_the_table_is_as_wide_as_it_is(finished):
    out, text = printed_at(finished, 90, terminal=False)
    assert "Too narrow" not in text
    assert "\u2026" not in text
    assert "load CV" in text
    assert out.width == 90


def test_the_larger_standard_error_is_bold(finished):
    column = next(column for column in table(finished).columns if column.header == "SE documents")
    dense, switch, _ = column.cells
    assert dense == "-"
    assert str(switch.style) == "bold"
    seeds = next(column for column in table(finished).columns if column.header == "SE seeds")
    assert all(isinstance(cell, str) for cell in seeds.cells)


def test_several_data_sets_are_compared_over_seeds_and_say_so(capsys):
    change = {"mean": 0.1, "low": 0.0, "high": 0.2}
    arms = {"a": {"interquartile_mean": change, "probability_of_improvement": 0.5, "data": ["x", "y"]}}
    print_across(output.console(), {"reference": "dense", "arms": arms, "ranks": None})
    assert "Differences are over training seeds; test units are not counted here\n" in capsys.readouterr().out


def entry(**more):
    fields = {"difference": {"n": 4, "units": 360}, "pair_diverged": 0,
            "warnings": {"outlying_seeds": [], "concentration": 0.4, "depends_on_seed": True}}  # fmt: skip
    return json.loads(json.dumps(fields)) | more


def test_notes_are_given_where_a_reader_must_know():
    assert notes_of(entry(), "image") == []
    assert notes_of(entry(pair_diverged=1), "image") == ["1 of 5 seeds diverged"]
    warned = {"outlying_seeds": [3], "concentration": 0.96, "depends_on_seed": True}
    assert notes_of(entry(warnings=warned), "image") == [
        "seed 3 is an outlier",
        "10 of 360 images carry 96% of the squared influence on the difference",
    ]
    assert notes_of(entry(warnings={**warned, "outlying_seeds": [1, 3]}), "image")[0] == "seeds 1 and 3 are outliers"
    assert notes_of(entry(difference={"n": 4, "units": 12}), "day") == ["only 12 days"]
    assert notes_of(entry(difference=None, warnings={}), None) == []
    assert notes_of(entry(difference=None, warnings={}, pair_diverged=2), None) == ["2 of 2 seeds diverged"]
