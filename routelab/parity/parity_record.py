"""What was measured, in `routers/router_metadata.json`: under each router, a list `parity` of references and differences."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from routelab.parity.differences import Distance
from routelab.parity.reference_case import Reference
from routelab.parity.reference_table import REFERENCES
from routelab.routers.router_metadata import FACTS, read, write


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def record(measured: Iterable[tuple[Reference, str, Distance]], path: Path = FACTS) -> None:
    """Put the results, to two digits, in the place of earlier ones of the same references; all else in the file stays."""
    facts = read(path)
    for reference, of_version, found in measured:
        entry = {
            "reference": reference.name,
            "version": of_version,
            "outputs": _rounded(found.outputs),
            "gradients": _rounded(found.gradients),
        }
        if found.losses is not None:
            entry["losses"] = _rounded(found.losses)
        parity = facts.setdefault(reference.router, {}).setdefault("parity", [])
        parity[:] = [old for old in parity if old["reference"] != reference.name] + [entry]
        order = [each.name for each in REFERENCES]
        parity.sort(key=lambda old: order.index(old["reference"]) if old["reference"] in order else len(order))
    write(facts, path)


def _rounded(value: float) -> float:
    return float(f"{value:.1e}")
