"""The report says how uncertain a difference is over seeds and over test units, and what comparisons by earlier versions lack."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from routelab.cli.app import app
from routelab.comparison.results import report_again
from routelab.comparison.verdict import verdict_of
from routelab.report.comparison_report import write_report
from routelab.report.interval_labels import coverage_of, describe_intervals, intervals_of, larger_error, sample_of, sources_of
from routelab.report.plots.arm_plots import forest
from routelab.report.plots.pairwise_plots import pairs as drawn_pairs

BOTH = {"mean": 0.2, "low": -0.1, "high": 0.5, "n": 5, "units": 360, "seed_error": 0.0312, "unit_error": 0.1234}
OF_SEEDS = {**BOTH, "units": None, "unit_error": None}
OF_UNITS = {**BOTH, "seed_error": None}
NEITHER = {**BOTH, "low": None, "high": None, "seed_error": None, "unit_error": None}
SEEDS_MATTER_MORE = {**BOTH, "seed_error": 0.25}


def entry(difference: dict[str, Any] | None, covered: list[str], **more: Any) -> dict[str, Any]:
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 5, "units": 360, "seed_error": 0.02, "unit_error": 0.04}
    return {"n": 5, "failed": 0, "loss": interval, "metric": interval, "difference": difference, "covered": covered, "state": "open",
            "p_holm": 0.3, "p_sign_flip": 0.0625, "verdict": "undecided", **more}  # fmt: skip


def summary(arms: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "n", "data": "d", "metric": "accuracy", "reference": "dense", "seeds": [0, 1, 2, 3, 4], "sentence": "On d: x.",
            "caveat": "c", "unit": "image", "uncertainty": ["seeds", "examples"],
            "arms": {"dense": entry(None, []), **arms}, **more}  # fmt: skip


class Cells(HTMLParser):
    """Collects the first table: rows of cells, of which each is its texts, those in bold with asterisks."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tables, self.is_bold, self.is_cell = 0, False, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tables += tag == "table"
        if self.tables == 1 and tag == "tr":
            self.rows.append([])
        if self.tables == 1 and tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_cell = True
        self.is_bold |= tag == "strong"

    def handle_endtag(self, tag: str) -> None:
        self.is_bold &= tag != "strong"
        self.is_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.tables == 1 and self.is_cell and self.rows:
            self.rows[-1][-1] += f"*{data}*" if self.is_bold else f" {data}"


def page(folder: Path, made: dict[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """Return the page, and the rows of its first table by heading."""
    write_report(folder / "report.html", made, [], figures=False)
    text = (folder / "report.html").read_text(encoding="utf-8")
    cells = Cells()
    cells.feed(text)
    heading, *rows = [[cell.strip() for cell in row] for row in cells.rows]
    return re.sub(r"\s+", " ", text), [dict(zip(heading, row, strict=True)) for row in rows]


def test_both_standard_errors_stand_in_the_table_and_the_larger_one_is_bold(tmp_path: Path) -> None:
    made = summary({"a": entry(BOTH, ["seeds", "examples"]), "b": entry(SEEDS_MATTER_MORE, ["seeds", "examples"])})
    text, (dense, a, b) = page(tmp_path, made)
    assert (a["SE over seeds"], a["SE over images"], a["Sample"]) == ("0.031", "*0.12*", "5 seeds \u00d7 360 images")
    assert (b["SE over seeds"], b["SE over images"]) == ("*0.25*", "0.12")
    assert (dense["SE over seeds"], dense["SE over images"], dense["Sample"]) == ("\u2013", "\u2013", "\u2013")
    assert "the larger one is bold" in text
    assert "in brackets 95% two-way intervals over training seeds and test images" in text
    assert "Sign-flip p" not in a, "it is a test over seeds alone"
    assert "no test units" not in text


def test_a_comparison_over_seeds_alone_has_one_standard_error_and_the_sign_flip_p(tmp_path: Path) -> None:
    text, (_, a) = page(tmp_path, summary({"a": entry(OF_SEEDS, ["seeds"])}, uncertainty=["seeds"]))
    assert (a["SE over seeds"], a["Sample"], a["Sign-flip p"]) == ("0.031", "5 seeds", "0.062")
    assert "SE over images" not in a
    assert "bold" not in text
    assert "t-intervals over training seeds on this test split, not adjusted" in text


def test_a_sign_flip_p_is_given_only_to_the_arm_whose_interval_covers_seeds_alone(tmp_path: Path) -> None:
    made = summary({"a": entry(BOTH, ["seeds", "examples"]), "b": entry(OF_SEEDS, ["seeds"])})
    text, (_, a, b) = page(tmp_path, made)
    assert (a["Sign-flip p"], b["Sign-flip p"]) == ("\u2013", "0.062")
    assert "two-way intervals over training seeds and test images (b: over training seeds on this test split)" in text


def test_one_seed_has_no_columns_of_errors(tmp_path: Path) -> None:
    _, (_, a) = page(tmp_path, summary({"a": entry(NEITHER, ["seeds", "examples"], state=None)}))
    assert not {"SE over seeds", "SE over images", "Sample"} & set(a)


def test_notes_stand_beside_the_difference_and_divergence_beside_the_seeds(tmp_path: Path) -> None:
    notes = ["1 of 5 seeds diverged", "seed 3 is an outlier"]
    arms = {"a": entry(BOTH, ["seeds", "examples"], notes=notes, n=4, failed=1, diverged=1),
            "b": entry(BOTH, ["seeds", "examples"], n=2, failed=3, diverged=1),
            "c": entry(BOTH, ["seeds", "examples"], n=4, failed=1, diverged=0)}  # fmt: skip
    _, (dense, a, b, c) = page(tmp_path, summary(arms))
    assert a["Loss minus dense"].endswith("1 of 5 seeds diverged seed 3 is an outlier")
    assert "outlier" not in b["Loss minus dense"]
    assert [row["Seeds"] for row in (dense, a, b, c)] == ["5", "4 1 diverged", "2 1 diverged, 2 failed", "4 1 failed"]


def test_the_notes_on_seeds_alone_and_on_withdrawn_verdicts_follow_the_headline(tmp_path: Path) -> None:
    arms = {"a": entry(BOTH, ["seeds", "examples"])}
    notes = {"split_note": "With [seeds] it differs. It counts less.", "withdrawal": "The earlier verdicts are withdrawn."}
    text, _ = page(tmp_path, summary(arms, **notes))
    assert '<p class="bad">The earlier verdicts are withdrawn.</p> <p>With [seeds] it differs. It counts less.</p>' in text
    assert text.index("On d: x.") < text.index("withdrawn") < text.index("<dl")
    text, _ = page(tmp_path, summary(arms, split_note=None, withdrawal=None))
    assert "withdrawn" not in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({"seeds": 5, "reached": 5, "flops": {"mean": 0.5}, "seconds": {"mean": 0.25}}, "0.5 / 0.25"),
        ({"seeds": 5, "reached": 5, "flops": {"mean": 0.5}, "seconds": None}, "0.5 / \u2013"),
        ({"seeds": 5, "reached": 3, "flops": None, "seconds": None}, "3 of 5 seeds reached it"),
        ({"seeds": 5, "reached": 0, "flops": None, "seconds": None}, "none of 5 seeds reached it"),
        ({"seeds": 1, "reached": 0, "flops": None, "seconds": None}, "none of 1 seed reached it"),
        # Earlier versions averaged over the seeds that reached it.
        ({"censored": 2, "flops": {"mean": 0.768, "n": 3}, "seconds": {"mean": 0.8, "n": 3}}, "3 of 5 seeds reached it"),
        ({"censored": 0, "flops": {"mean": 0.5, "n": 5}, "seconds": {"mean": 0.25, "n": 5}}, "0.5 / 0.25"),
        ({"censored": 5, "flops": {"mean": None, "n": 0}, "seconds": {"mean": None, "n": 0}}, "none of 5 seeds reached it"),
        (None, "\u2013"),
    ],
)
def test_the_references_loss_has_a_price_only_if_every_seed_reached_it(target: Any, text: str, tmp_path: Path) -> None:
    _, (_, a) = page(tmp_path, summary({"a": entry(BOTH, ["seeds", "examples"], to_target=target)}))
    assert a["To the reference's loss: FLOPs / time"] == text


def test_sources_and_samples() -> None:
    assert [sources_of(item) for item in (BOTH, OF_SEEDS, OF_UNITS, NEITHER, None, {"mean": 1.0, "n": 3})] == [
        ("seeds", "examples"), ("seeds",), ("examples",), (), (), (),
    ]  # fmt: skip
    assert [larger_error(item) for item in (BOTH, SEEDS_MATTER_MORE, OF_SEEDS, OF_UNITS, None)] == [
        "unit_error",
        "seed_error",
        None,
        None,
        None,
    ]
    assert [sample_of(item, "day") for item in (BOTH, OF_SEEDS, OF_UNITS, NEITHER, {**BOTH, "units": 1})] == [
        "5 seeds \u00d7 360 days", "5 seeds", "360 days", "", "5 seeds \u00d7 1 day",
    ]  # fmt: skip


def test_what_intervals_cover() -> None:
    made = summary({"a": entry(BOTH, ["seeds", "examples"])}, unit="licence family")
    assert intervals_of(made) == (
        "95% two-way intervals over training seeds and test licence families, not adjusted for how many are judged; Holm's p, which "
        "decides, is"
    )
    assert describe_intervals(made, {"a": OF_UNITS}) == "95% t-intervals over test licence families for these trained models"
    assert coverage_of(made, {"a": BOTH, "b": OF_UNITS, "c": OF_UNITS}) == (
        "training seeds and test licence families (b and c: over test licence families for these trained models)"
    )
    assert coverage_of(made, {"a": NEITHER}) == "training seeds and test licence families", "what they were to cover"
    assert coverage_of({**made, "unit": None}, {"a": NEITHER}) == "training seeds on this test split"
    assert intervals_of({**made, "sequential": True}) == (
        "intervals over training seeds and test licence families that hold at every interim analysis, their level of 0.05 divided "
        "among those that are judged"
    )


def test_figures_carry_both_standard_errors_and_say_what_they_cover() -> None:
    pair = {"arm": "a", "against": "b", **entry(BOTH, ["seeds", "examples"])}
    made = summary({"a": entry(BOTH, ["seeds", "examples"]), "b": entry(BOTH, ["seeds", "examples"])}, pairs=[pair])
    for plot in (forest(made, []), drawn_pairs(made, [])):
        assert plot is not None
        row = dict(zip(plot.table[0], plot.table[1], strict=True))
        assert (row["seed_error"], row["unit_error"]) == (0.0312, 0.1234)
        assert "two-way intervals over training seeds and test images" in plot.note
        assert "p_sign_flip" not in row
    alone = drawn_pairs({**made, "pairs": [{**pair, **entry(OF_SEEDS, ["seeds"])}]}, [])
    assert alone is not None
    assert dict(zip(alone.table[0], alone.table[1], strict=True))["p_sign_flip"] == 0.0625
    assert "t-intervals over training seeds on this test split" in alone.note


OLDER_ARM = {
    "n": 3, "failed": 0, "loss": {"mean": 1.0, "low": 0.9, "high": 1.1, "n": 3}, "metric": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3},
    "difference": {"mean": 0.1, "low": -0.1, "high": 0.3, "n": 3}, "p_sign_flip": 0.25, "detectable": 0.5, "state": "open", "bca": None,
    "p_t": 0.2, "p_holm": 0.2, "p_equivalent": 0.9, "seeds_needed": 12, "leaks": None, "marks": [], "leverage": None, "by_domain": {},
    "time_ratio": None, "training_ratio": None, "flops_ratio": 1.0, "causal": True,
    "to_target": {"loss": 1.0, "censored": 1, "flops": {"mean": 0.7, "n": 2}, "seconds": {"mean": 0.8, "n": 2}},
    "verdict": "undecided: n=3; underpowered: about 9 more seeds would settle a difference as large as this",
}  # fmt: skip
OLDER = {
    "name": "old", "data": "digits", "metric": "accuracy", "reference": "dense", "seeds": [0, 1, 2],
    "arms": {"dense": {**OLDER_ARM, "difference": None, "state": None, "to_target": None, "verdict": "the reference"},
             "switch": OLDER_ARM, "failed": {**OLDER_ARM, "n": 1, "difference": {"mean": 0.1, "low": None, "high": None, "n": 1},
                                             "state": None}},
    "sentence": "On digits: x (paired t-tests over seeds).", "caveat": "The test split is fixed.", "margin": 0.01, "level": 0.05,
    "sequential": False, "frontier": None, "tuned": {}, "rows": {}, "cells": [], "pairs": [
        {**OLDER_ARM, "arm": "switch", "against": "failed"}
    ], "series": [], "tokens_per_example": None, "yardsticks": [],
}  # fmt: skip
"""Summary with the keys of version 0.1, in which differences were judged over seeds alone."""


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "results/old"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(OLDER))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_comparison_of_an_earlier_version_says_that_it_was_judged_over_seeds_alone(older: Path) -> None:
    path, made = report_again("old")
    text = path.read_text(encoding="utf-8")
    assert "Judged over training seeds only: this comparison recorded no test units." in text
    assert "SE over" not in text
    assert "Sign-flip p" in text
    assert "2 of 3 seeds reached it" in text
    assert "t-intervals over training seeds on this test split" in text
    assert "more seeds would settle" not in text, "seeds that are added after a verdict raise its error rate"
    assert made["arms"]["switch"]["verdict"] == (
        "undecided: test loss +10.5% [-9.5, +35.0] against dense, 3 seeds, on this test split, Holm p=0.2"
    )
    assert made["pairs"][0]["verdict"].startswith("undecided: test loss +10.5%")
    assert verdict_of("failed", OLDER["arms"]["failed"], "dense").endswith("one seed gives no interval")
    assert json.loads((older / "summary.json").read_text()) == OLDER, "what was found stays as it is"
    rows = list(csv.DictReader((older / "figures/pairs.csv").open()))
    assert (rows[0]["p_sign_flip"], rows[0]["seed_error"]) == ("0.25", "")


def test_the_command_says_so_too(older: Path) -> None:
    printed = CliRunner().invoke(app, ["report", "old"]).output
    assert "Judged over training seeds only: this comparison recorded no test units\n" in printed
    (older / "summary.json").write_text(json.dumps({**OLDER, "reference": None, "pairs": []}))
    assert "Judged" not in CliRunner().invoke(app, ["report", "old"]).output, "nothing was judged"
