"""Draw docs/architecture/architecture.svg: the layers of the code, and the path of an experiment through them.

    python docs/architecture/draw.py

Layers come from the import contract in pyproject.toml, their descriptions from the docstrings of the packages.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_name("architecture.svg")

STEPS = [
    ("cli/compare_command.py", "file, overrides"),
    ("config/resolve.py", "config"),
    ("config/arm_grid.py", "arms"),
    ("comparison/grid.py", "arm, size, budget"),
    ("records/run_cache.py", "address of a run"),
    ("comparison/execute.py", "processes"),
    ("training/run.py", "one run"),
    ("data/base.py", "data set"),
    ("baselines/build.py", "arm"),
    ("experts/moe_layer.py", "routing, capacity"),
    ("training/lightning_module.py", "optimizer steps"),
    ("records/json_io.py", "record of the run"),
    ("comparison/statistics/", "tests"),
    ("comparison/summary.py", "verdicts"),
    ("report/comparison_report.py", "page"),
]
"""File and product of each step of an experiment."""

LINKED = ("routers", "experts", "baselines", "sweeps")
WIDTH, LEFT, BAND, TOP, STEP = 1345, 325, 46, 48, 65
INK, MUTED, LINE, ACCENT = "#1f2328", "#59636e", "#d1d9e0", "#0b6bcb"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def layers() -> list[list[str]]:
    """Return the packages of each layer, from the top of the import order to its bottom."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    listed = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip(" ()") for name in layer.split("|")] for layer in listed]


def folder_of(package: str) -> str:
    """Return the folder of a package in the repository."""
    return f"{package}/" if package in LINKED else f"routelab/{package}/"


def description_of(package: str) -> str:
    """Return the first line of a package's docstring, without its full stop."""
    tree = ast.parse((ROOT / "routelab" / package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")


def text(
    x: float, y: float, content: str, *, size: float = 12, color: str = INK, bold: bool = False, anchor: str = "start"
) -> str:
    """Return an SVG text element."""
    weight = " font-weight='bold'" if bold else ""
    style = f"font-size='{size:g}' fill='{color}' text-anchor='{anchor}'{weight} {FONT}"
    return f"<text x='{x:g}' y='{y:g}' {style}>{escape(content)}</text>"


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    """Return an SVG rectangle."""
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' {style}/>"


def bands() -> list[tuple[str, list[str]]]:
    """Return one band for each package: its folder, and its description in lines that fit."""
    return [(package, textwrap.wrap(description_of(package), 56)[:2]) for layer in layers() for package in layer]


def draw() -> str:
    """Return the picture as SVG."""
    rows = bands()
    height = TOP + BAND * len(rows) + 44
    top_of = {package: TOP + BAND * index for index, (package, _) in enumerate(rows)}
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' role='img'>",
        "<title>Layers of routelab and the path of an experiment</title>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        text(16, 28, "Layers: each imports only lower ones", size=13.5, bold=True),
        text(LEFT + 16, 28, "Path of an experiment (routelab compare), from left to right", size=13.5, bold=True),
    ]
    for index, (package, lines) in enumerate(rows):
        top = top_of[package]
        shade = ("#f6f8fa", "#ffffff")[index % 2]
        parts.append(box(8, top, WIDTH - 16, BAND - 4, f"rx='5' fill='{shade}' stroke='{LINE}'"))
        parts.append(text(16, top + 15, folder_of(package), size=12.5, bold=True))
        parts += [text(16, top + 27 + 11 * number, line, size=9.5, color=MUTED) for number, line in enumerate(lines)]
    centers = [
        (LEFT + 40 + STEP * index, top_of[file.partition("/")[0]] + (BAND - 4) / 2 - 7) for index, (file, _) in enumerate(STEPS)
    ]
    path = " ".join(f"{x:g},{y:g}" for x, y in centers)
    parts.append(f"<polyline points='{path}' fill='none' stroke='{ACCENT}' stroke-width='1.5' stroke-opacity='0.45'/>")
    for number, ((x, y), (file, product)) in enumerate(zip(centers, STEPS, strict=True), 1):
        parts.append(f"<circle cx='{x:g}' cy='{y:g}' r='9' fill='{ACCENT}'/>")
        parts.append(text(x, y + 4, str(number), size=11, color="#ffffff", bold=True, anchor="middle"))
        label = file.partition("/")[2].removesuffix("/") or file
        width = 5.6 * max(len(label), len(product))
        parts.append(box(x - width / 2, y + 10, width, 21, "fill='#ffffff' fill-opacity='0.85'"))
        parts.append(text(x, y + 18.5, label, size=9.5, bold=True, anchor="middle"))
        parts.append(text(x, y + 29, product, size=9.5, color=MUTED, anchor="middle"))
    origin = "Made by docs/architecture/draw.py from pyproject.toml and the docstrings of the packages."
    parts.append(text(16, height - 16, origin, size=10, color=MUTED))
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
