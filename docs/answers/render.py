"""docs/answers.md, from the results that docs/answers/commands.sh leaves: python docs/answers/render.py [RESULTS]

Every number of the page, every verdict and every figure is read from those results; the template holds the questions, what is
compared, and how far the answers reach.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from scipy.stats import t as student

from routelab.comparison.verdict import verdict_of
from routelab.core.number_format import format_change, format_count, format_half_width, format_setting

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "answers.md"


class Results:
    """What the template may ask for. A number that is not there stops the page: an answer without its figure is none."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, place: str) -> Any:
        """A JSON file below the results."""
        return json.loads((self.root / place).read_text(encoding="utf-8"))

    def figure(self, place: str, title: str) -> str:
        """Copies a picture beside the page, and shows it."""
        name = place.replace("/figures/", "-").replace("/", "-")
        shutil.copyfile(self.root / place, HERE / name)
        return f"![{title}](answers/{name})"

    def verdict(self, name: str, arm: str) -> str:
        """The sentence on an arm of a comparison."""
        summary = self.read(f"{name}/summary.json")
        return f"`{arm}`: {verdict_of(arm, summary['arms'][arm], summary['reference'], summary.get('unit'))}"

    def verdicts(self, name: str) -> str:
        """The sentences on all arms of a comparison, as a list."""
        summary = self.read(f"{name}/summary.json")
        return "\n".join(f"- {self.verdict(name, label)}" for label in summary["arms"] if label != summary["reference"])

    def pairs(self, name: str) -> str:
        """The sentences on arms that are judged against each other."""
        summary = self.read(f"{name}/summary.json")
        unit, judged = summary.get("unit"), summary["pairs"]
        return "\n".join(f"- `{pair['arm']}`: {verdict_of(pair['arm'], pair, pair['against'], unit)}" for pair in judged)

    def slower(self, name: str, first: str, second: str, batch: int = 256) -> str:
        """How many times as long the second arm's predictions take as the first's."""
        arms = self.read(f"{name}/summary.json")["arms"]
        return f"{arms[second]['inference'][str(batch)] / arms[first]['inference'][str(batch)]:.1f}"

    def sentence(self, name: str) -> str:
        """What a comparison says of itself."""
        return self.read(f"{name}/summary.json")["sentence"]

    def sentences(self, place: str, begin: str = "") -> str:
        """What an analysis says of itself, as a list; those sentences alone that begin so."""
        return "\n".join(f"- {each}" for each in self.read(place)["sentences"] if each.startswith(begin))

    def compared(self, name: str, *columns: str) -> str:
        """A comparison as a table: test loss, its difference from the reference, and `columns` of its summary."""
        summary = self.read(f"{name}/summary.json")
        head = ["arm", "test loss", f"loss against {summary['reference']}", *(COLUMNS[column][0] for column in columns)]
        rows = [
            [
                f"`{label}`",
                format_half_width(arm["loss"]),
                format_change(arm["difference"]),
                *(shown(arm, column) for column in columns),
            ]
            for label, arm in summary["arms"].items()
        ]
        return table(head, rows)

    def rows(self, place: str, columns: Mapping[str, str]) -> str:
        """A CSV file as a table. columns: its names to those of the table."""
        found = [[cell(row[column]) for column in columns] for row in self.table_of(place)]
        return table(list(columns.values()), found)

    def leverage(self, name: str) -> str:
        """The efficiency leverage of every arm at its own loss."""
        rows = []
        for label, arm in self.arms(name).items():
            own = (arm.get("leverage") or {}).get("own")
            if own:
                bound = "" if own["bound"] == "=" else f"{own['bound']} "
                low, high = (own.get(end) for end in ("low", "high"))
                rows.append(
                    [f"`{label}`", f"{bound}{own['mean']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else "")]
                )
        return table(["arm", "efficiency leverage"], rows)

    def seeds(self, name: str) -> int:
        """How many seeds a comparison has."""
        return len(self.read(f"{name}/summary.json")["seeds"])

    def specialists(self, name: str) -> str:
        """A comparison with its losses by domain, and FLOPs of a prediction over the reference's."""
        arms = self.arms(name)
        domains = list(next(iter(arms.values()))["by_domain"])
        rows = [
            [f"`{label}`", format_half_width(arm["loss"]), format_change(arm["difference"])]
            + [format_change(arm["by_domain"][domain]["difference"]) for domain in domains]
            + [f"{arm['flops_ratio']:.2f}"]
            for label, arm in arms.items()
        ]
        return table(["arm", "test loss", "against dense", *domains, "FLOPs of a prediction"], rows)

    def arms(self, name: str) -> Any:
        """What the summary of a comparison says of its arms."""
        return self.read(f"{name}/summary.json")["arms"]

    def served(self, place: str, batch: int, share: float) -> str:
        """What each run reads with that share of its experts in memory, serving `batch` texts at a time."""
        rows = []
        for row in self.table_of(place):
            if int(row["batch"]) == batch and float(row["resident_share"]) == share:
                kilo, hits = (
                    [float(row[f"{key}{end}"]) for end in ("", "_low", "_high")] for key in ("bytes_per_token", "hit_rate")
                )
                rows.append([
                    f"`{row['run']}`", row["unit"], f"{kilo[0] / 1e3:.1f} kB [{kilo[1] / 1e3:.1f}, {kilo[2] / 1e3:.1f}]",
                    f"{hits[0]:.1%} [{hits[1]:.1%}, {hits[2]:.1%}]", f"{float(row['chance']):.1%}", f"{float(row['optimum']):.1%}",
                ])  # fmt: skip
        return table(["router", "read at once", "read per token", "hits", "by chance", "at best"], rows)

    def made(self) -> str:
        """How many runs there are, of what code they are, and what they ran with."""
        found = [json.loads(place.read_text(encoding="utf-8"))["provenance"] for place in self.root.glob("cells/*/record.json")]
        code = sorted({each["git_revision"][:7] for each in found})
        changed = sum(bool(each["git_diff"]) for each in found)
        used = sorted({f"Python {each['python']}, torch {each['versions']['torch']}" for each in found})
        apart = f" ({changed} of them with changes, which their records hold)" if changed else ""
        return f"{len(found)} runs of commit {', '.join(code)}{apart}, with {'; '.join(used)}"

    def table_of(self, place: str) -> list[dict[str, str]]:
        """The rows of a CSV file."""
        with (self.root / place).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def analyses(self, arm: str) -> list[Any]:
        """What `routelab analyze` found in every seed of an arm."""
        return [
            self.read(str(place.relative_to(self.root))) for place in sorted(self.root.glob(f"answers/{arm}-s*/analysis.json"))
        ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns that are empty throughout are left out."""
    kept = list(rows)
    places = [place for place in range(len(head)) if place == 0 or any(row[place] for row in kept)]
    lines = [[head[place] for place in places], ["---"] * len(places), *([row[place] for place in places] for row in kept)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """A number to four digits; anything else as it is."""
    try:
        return format_setting(float(text))
    except ValueError:
        return text


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """The mean of a number over seeds with its 95% t-interval."""
    found = list(values)
    mean = statistics.mean(found)
    half = float(student.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))
    # z: no minus before what rounds to zero.
    return f"{mean:z{form}} [{mean - half:z{form}}, {mean + half:z{form}}]"


def largest_p(runs: Sequence[Any]) -> float:
    """Of the tests of every label in every layer of every run."""
    return max(test["p"] for run in runs for label in run["labels"].values() for test in label["information"])


def layers_apart(runs: Sequence[Any], label: str) -> list[float]:
    """How much more the first layer tells than the second, for each run."""
    tests = [run["labels"][label]["information"] for run in runs]
    return [first["corrected"] - second["corrected"] for first, second, *_ in tests]


def rerouted(runs: Sequence[Any], kind: str) -> list[float]:
    """Rise of the loss under random, swapped or even routing in all layers, for each run."""
    return [row["rise"]["mean"] for run in runs for row in run["ablation"] if row["kind"] == kind and row["layer"] is None]


def single(runs: Sequence[Any], kind: str) -> list[float]:
    """Rise of the loss without each expert ("without"), or with it alone ("only"), over runs and layers."""
    return [row["rise"]["mean"] for run in runs for row in run["ablation"] if row["kind"] == kind]


def neighbours(runs: Sequence[Any], layer: int, what: str) -> list[float]:
    """Share of neighbouring tokens with the same first choice ("share"), of any two tokens of a text ("within"), or of any two, which
    is chance ("chance"), for each run."""
    found = [run["layers"][layer]["repetition"]["all"]["first"] for run in runs]
    return [each["share"]["mean"] if what == "share" else each[what] for each in found]


def independent(runs: Sequence[Any]) -> list[float]:
    """How many equally frequent paths as many tokens would show if layers chose independently, for each run."""
    return [2 ** run["paths"]["independent"] for run in runs]


def dead(runs: Sequence[Any]) -> int:
    """Experts without a token."""
    return sum(len(layer["dead"]) for run in runs for layer in run["layers"])


def duplicates(runs: Sequence[Any]) -> int:
    """Pairs of experts that do the same."""
    return sum(len(layer["similarity"]["duplicates"]) for run in runs for layer in run["layers"])


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "flops_per_example": ("FLOPs per example", format_count),
    "total_params": ("parameters", format_count),
    "active_params": ("active", format_count),
    "flops_model": ("training FLOPs", format_count),
    "seconds": ("training s", lambda value: f"{value:.0f}"),
    "drop_rate": ("dropped", lambda value: f"{value:.1%}"),
    "load_cv": ("load CV", lambda value: f"{value:.2f}"),
    "time_ratio": ("time over the reference's", lambda value: f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"),
}
"""Columns of a comparison's summary: what they are called, and how they are shown."""


def shown(arm: Mapping[str, Any], column: str) -> str:
    """One number of an arm; empty where it has none."""
    value = arm.get(column)
    return "" if value is None else COLUMNS[column][1](value)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    results = Results(root)
    around = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    around.globals.update(
        results=results, arms=results.arms, spread=spread, size=format_count, rerouted=rerouted, single=single, neighbours=neighbours,
        independent=independent, dead=dead, duplicates=duplicates, largest_p=largest_p, layers_apart=layers_apart,
    )  # fmt: skip
    PAGE.write_text(around.get_template("template.md").render(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
