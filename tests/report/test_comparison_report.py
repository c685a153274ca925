"""The report: everything in it, nothing of it from elsewhere."""

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from routelab.core.number_format import format_number
from routelab.report.comparison_report import write_report
from routelab.report.plots.arm_plots import loss_curves
from routelab.report.plots.report_plots import figures_of

ARMS = ("dense", "switch-cf{1.0}", "_soft$x$", '<script>alert("1")</script>')
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<img src=x onerror=alert(1)> & more"


def record(arm: str, seed: int, status: str = "ok") -> dict[str, Any]:
    scale = 1 + ARMS.index(arm) + 0.05 * seed
    found: dict[str, Any] = {
        "status": status,
        "error": None,
        "arm": arm,
        "seed": seed,
        "data": "digits",
        "metric": "accuracy",
        "config": {"data": {"name": "digits"}, "arm": arm, "note": EVIL, "lr": [0.1, 0.2], "path": Path("/x")},
        "provenance": {
            "versions": {"torch": "2.13.0", "routelab": "0.1.0"},
            "git_revision": "abc123",
            "git_diff": "+ <b>changed</b>",
            "data_digest": "sha256:feed",
            "cell": f"{arm}-{seed}",
            "python": "3.11.9",
            "command": "routelab compare data=digits",
        },
    }
    if status == "failed":
        return {**found, "error": EVIL, "test": None, "curve": None}
    curve = [{"step": i, "flops": 2e6 * 3**i, "val/loss": scale / (i + 1) if i else None} for i in range(8)]
    test = {"loss": scale, "accuracy": 0.9}
    if arm == ARMS[1]:
        found["load"] = [[[0.5, 1.5, 1.0], [3.0, 0.0, 0.0]]] * 9
    return {**found, "test": test, "flops_model": 1e10 * scale, "seconds": 3.0, "curve": [*curve, {"step": 8, "flops": 1e10}]}


PLACE = {
    "own": {"loss": 0.2, "bound": ">", "mean": 4.5, "low": math.nan, "high": math.nan, "n": 3},
    "at": [{"loss": 0.3 + i / 10, "mean": 1.5 + i / 4, "low": 1.2, "high": 2.5, "n": 3} for i in range(3)],
    "mean": None,
    "effective_size": {"params": 123456.0, "bound": ">"},
    "hypervolume": 1.0,
}
"""An arm's place on the dense frontier."""


def summary() -> dict[str, Any]:
    interval = {"mean": 0.31234, "low": 0.2512, "high": 0.3798, "n": 3}
    arms = {
        arm: {
            "n": 3,
            "failed": index % 2,
            "loss": interval,
            "metric": {"mean": 0.9, "low": math.nan, "high": math.nan, "n": 1},
            "difference": None if index == 0 else {"mean": -0.02, "low": -0.05, "high": 0.01, "n": 3},
            "p_sign_flip": 0.25,
            "verdict": "no difference shown",
            "flops_per_example": 1234567,
            "flops_ratio": 1.25,
            "active_params": 10000,
            "total_params": 80000,
            "flops_model": 1.5e12,
            "flops_executed": 1.7e12,
            "seconds": 12.5,
            "drop_rate": None,
            "load_cv": 0.2,
            "causal": bool(index),
            "active_ratio": 1.0,
            "total_ratio": 2.5,
            "p_holm": 0.042,
            "state": "open",
            "to_target": {"loss": 0.3, "seeds": 3, "reached": 3, "flops": {"mean": 0.375}, "seconds": {"mean": 0.875}},
            "calibration": {"nll": 0.5, "brier": 0.25, "ece": 0.0625},
            "diversity": {"error_correlation": 0.5, "disagreement": 0.1, "member_loss": 0.4, "members": 8.0} if index else {},
            "time_ratio": {"mean": 1.5, "low": 1.2, "high": 1.9, "n": 3},
            "leverage": None if index == 0 else PLACE,
        }
        for index, arm in enumerate(ARMS)
    }
    return {
        "name": EVIL,
        "data": "digits",
        "metric": "accuracy",
        "reference": "dense",
        "seeds": [0, 1, 2],
        "sentence": f"No arm differs from dense. {EVIL}",
        "caveat": "Three seeds cannot reach p below .25.",
        "arms": arms,
        "margin": 0.01,
        "pairs": [
            {
                "arm": ARMS[3],
                "against": ARMS[1],
                "state": "open",
                "p_holm": 0.7654,
                "difference": {"mean": -0.02, "low": -0.05, "high": 0.01, "n": 3},
            }
        ],
        "series": [
            {"name": EVIL, "options": ["top_k"], "points": [{"arm": arm, "at": [k]} for k, arm in enumerate(ARMS[1:], 1)]}
        ],
        "frontier": {
            "points": [{"label": "dense", "flops": 1e10, "loss": 0.5}, {"label": "dense@2", "flops": 2e10, "loss": 0.4}],
            "front": [(1e10, 0.5), (2e10, 0.4)],
        },
    }


def records() -> list[dict[str, Any]]:
    return [record(arm, seed) for arm in ARMS for seed in range(2)] + [record("dense", 2, "failed")]


class Page(HTMLParser):
    """Collects the elements, their addresses, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(path, summary(), records())
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["figures", "report.html"]
    drawn = {"differences", "pairs", "series-top_k", "loss", "quality", "leverage", "time", "diversity", "load-1"}
    assert {entry.name for entry in (path.parent / "figures").iterdir()} == {
        f"{n}.{kind}" for n in drawn for kind in ("png", "csv")
    }
    return path.read_text(encoding="utf-8")


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


def test_text_is_escaped(html: str) -> None:
    page = parsed(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "b" not in page.tags
    assert EVIL in "".join(page.words)


def test_every_arm_stands_in_the_table_and_in_the_figure(html: str) -> None:
    page = parsed(html)
    for arm in ARMS:
        assert page.words.count(arm) >= 6  # Two rows, and five legends.
    assert page.tags.count("svg") == 9
    words = "".join(page.words)
    for expected in (
        "0.31",
        "[0.25, 0.38]",
        "-0.020",
        "[-0.050, +0.010]",
        "1.25\u00d7",
        "1.23e6",
        "1.5e12",
        "no difference shown",
        "2.5\u00d7",
        "> 4.5",
        "> 1.23e5",
        "0.0625",
        "0.375 / 0.875",
        "Error correlation",
        "0.042",
        "0.7654",  # In the table of the pairs.
        "What top_k buys and costs",
        "change from dense",
    ):
        assert expected in words
    assert "nan" not in "".join(page.words).lower().split()


def test_no_address_outside_the_page(html: str) -> None:
    assert all(address.startswith("#") for address in parsed(html).addresses)
    assert not re.findall(r"https?://|url\((?!#)|@import|//[a-z0-9]+\.", html)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 820, 1400])
def test_a_browser_shows_every_figure_and_complains_of_nothing(html: str, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/profile",
        f"--window-size={width},1200", "--enable-logging=stderr", "--virtual-time-budget=2000", f"--screenshot={tmp_path}/page.png",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("<svg") == 9
    assert "CONSOLE" not in done.stderr, done.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000, "a page without anything on it is smaller"


def test_provenance_failures_and_both_themes(html: str) -> None:
    words = "".join(parsed(html).words)
    for expected in (
        "torch 2.13.0",
        "abc123 with uncommitted changes",
        "sha256:feed",
        "routelab compare data=digits",
        "name: digits",
    ):
        assert expected in words
    assert "Failed cells" in words
    assert "prefers-color-scheme: dark" in html
    assert "viewport" in html
    assert "currentColor" in html
    assert "#010203" not in html


def test_figures_can_be_left_out_and_values_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, summary(), records(), figures=False)
    assert "<svg" not in path.read_text(encoding="utf-8")
    bare = {"name": "x", "data": "d", "metric": "r2", "reference": None, "seeds": [], "sentence": "", "arms": {"a": {}}}
    write_report(path, bare, [{"status": "failed", "arm": "a", "seed": 0}])
    words = "".join(parsed(path.read_text(encoding="utf-8")).words)
    assert "<svg" not in path.read_text(encoding="utf-8"), "there is nothing to draw"
    assert "no reason was recorded" in words
    assert figures_of({}, []) == []


def words_of(path: Path, made: dict[str, Any]) -> str:
    write_report(path / "report.html", made, records(), figures=False)
    return "".join(parsed((path / "report.html").read_text(encoding="utf-8")).words)


def test_what_intervals_are_is_said_as_it_is(tmp_path: Path) -> None:
    said = (
        "for differences (in log loss, over pairs that share a seed) {}% t-intervals over training seeds on this test split, not "
        "adjusted for how many are judged; Holm's p, which decides, is."
    )
    assert said.format(95) in words_of(tmp_path, summary())
    assert said.format(99) in words_of(tmp_path, {**summary(), "level": 0.01})
    judged_on_the_way = words_of(tmp_path, {**summary(), "sequential": True})
    assert (
        "intervals over training seeds on this test split that hold at every interim analysis, their level of 0.05 divided among "
        "those that are judged"
    ) in judged_on_the_way
    assert "Holm's p, which decides" not in judged_on_the_way


def test_without_a_reference_nothing_is_held_against_one(tmp_path: Path) -> None:
    words = words_of(tmp_path, {**summary(), "reference": None})
    for absent in ("None", "Loss minus", "Holm p", "Leverage", "the ratio is to"):
        assert absent not in words
    assert "ratio is to dense" in words_of(tmp_path, summary())


def test_tuning_steps_and_measured_flops_have_their_columns(tmp_path: Path) -> None:
    made = summary()
    made["arms"][ARMS[1]] |= {"steps": 321.0, "flops_per_example_measured": 7654321, "inference": {"1": 1e-3, "256": 2e-5}}
    made["arms"][ARMS[2]]["inference"] = {"1": 3e-3}
    made["tuned"] = {"dense": {"rate": 0.003, "validation": {"0.001": 1.5, "0.003": 1.25}, "edge": True, "flops": 4.4e9}}
    best = {"settings": {"lr": 0.0123, "router.priority": "probability"}}
    made["tuning"] = {ARMS[1]: {"complete": 7, "pruned": 2, "failed": 1, "flops": 5.5e9, "best": best}}
    words = words_of(tmp_path, made)
    assert {"321", "7.65e6", "4.4e9", "5.5e9"} <= set(parsed((tmp_path / "report.html").read_text(encoding="utf-8")).words)
    assert "learning rate 0.003 of 0.001 (1.5), 0.003 (1.25); at the edge of what was tried" in words
    assert "lr 0.0123, router.priority probability by 7 complete trials, 2 pruned, 1 failed" in words
    assert "Inference, batch 1 / 256" in words
    assert "1000 / 20" in words
    assert "3000 / \u2013" in words, "a size that was not timed keeps its place"
    assert "an arm that drops takes more steps" in words


def test_what_earlier_runs_took_stands_beside_the_training_flops(tmp_path: Path) -> None:
    made = summary()
    made["arms"][ARMS[1]] |= {"flops_model": 1.5e12, "initial_flops": 3e11}
    write_report(tmp_path / "report.html", made, records(), figures=False)
    assert f"<td>{format_number(1.5e12)} after {format_number(3e11)}</td>" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def curves(*lines: list[tuple[float, float]], arm: str = "a") -> list[dict[str, Any]]:
    return [
        {"status": "ok", "arm": arm, "seed": i, "curve": [{"flops": x, "val/loss": y} for x, y in line]}
        for i, line in enumerate(lines)
    ]


def test_the_mean_line_covers_only_what_all_seeds_share() -> None:
    points = [(1e6, 2.0), (2e6, 1.0), (4e6, 0.5)]
    drawn = loss_curves({}, curves(points[:2], [(x, y + 1) for x, y in points]))
    assert drawn is not None
    mean = next(line for line in drawn.figure.axes[0].get_lines() if line.get_label() == "a")
    assert list(mean.get_xdata()) == [1e6, 2e6]
    assert list(mean.get_ydata()) == [2.5, 1.5]
    assert [row[:3] for row in drawn.table[1:]] == [["a", 1e6, 2.5], ["a", 2e6, 1.5]]


def test_a_long_label_takes_a_legend_of_fewer_columns() -> None:
    """Three columns of such labels would be cut off at the figure's edge."""

    def columns(*labels: str) -> int:
        drawn = loss_curves({}, [record for label in labels for record in curves([(1e6, 1.0)], arm=label)])
        assert drawn is not None
        figure = drawn.figure
        figure.canvas.draw()
        legend, width = figure.legends[0].get_window_extent(), figure.bbox.width
        assert legend.x0 >= 0
        assert legend.x1 <= width
        return figure.legends[0]._ncols

    assert columns("dense", "switch", "hash", "soft") == 3
    assert columns(*(f"switch-capacity_factor={i}.25-init_scale=0.1" for i in range(4))) == 1
    assert columns(*(f"switch-capacity_factor={i}.25" for i in range(4))) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (None, "\u2013"),
        (math.nan, "\u2013"),
        (1.0, "1"),
        (0.25, "0.25"),
        (12.345, "12.3"),
        (40000, "40000"),
        (1.2e9, "1.2e9"),
        (1e-5, "1e-5"),
    ],
)
def test_short_numbers(value: object, text: str) -> None:
    assert format_number(value) == text
