"""Write and compare the committed values: `python tests/golden/committed.py` writes `values.json` anew.

The script records the present tree twice, with this machine's vector instructions and without them. A value that the two
recordings do not agree on within `REPRODUCED` depends on the order of sums, and is left out: the biases of attention's keys, whose
gradient is rounding error, and the targets of stacking's combiner. `against_commit.py` compares all values.

A commit that changes numbers on purpose rewrites the file and names each change.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from against_commit import FOLDER, ROOT, run_recorder

VALUES = FOLDER / "values.json"
TOLERANCE = 1e-5
REPRODUCED = 2e-6
OLDER_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
}

Sections = Mapping[str, Mapping[str, Any]]


def main() -> None:
    """Write `values.json` for the present tree."""
    recordings = []
    with tempfile.TemporaryDirectory() as folder:
        for number, variables in enumerate(({}, OLDER_PROCESSOR)):
            out = Path(folder) / f"{number}.json"
            with mock.patch.dict(os.environ, variables):
                run_recorder(out, ROOT)
            recordings.append(json.loads(out.read_text()))
    first, second = ({case: shortened(sections) for case, sections in recording["cases"].items()} for recording in recordings)
    kept = {case: reproduced(first[case], second[case]) for case in first}
    write({"key_map": recordings[0]["key_map"], "cases": kept})
    total, left = (sum(len(values) for case in cases.values() for values in case.values()) for cases in (first, kept))
    print(f"{left} of {total} values of {len(kept)} cases: {VALUES}")


def write(values: Mapping[str, Any]) -> None:
    """Write the committed file, compactly, a line for every section.

    Args:
        values: The version of the key map and the shortened cases.
    """
    text = json.dumps(rounded(values), separators=(",", ":"))
    VALUES.write_text(text.replace("},", "},\n") + "\n")


def rounded(tree: Any) -> Any:
    """Return a tree with floats of ten significant digits, which suffice for the tolerance.

    Args:
        tree: Nested mappings and lists of plain values.

    Returns:
        The same tree with rounded floats.
    """
    if isinstance(tree, Mapping):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.10g}") if isinstance(tree, float) else tree


def shortened(sections: Sections) -> dict[str, dict[str, Any]]:
    """Return the values of a case without digests and types.

    Args:
        sections: The sections of a recorded case.

    Returns:
        The sections. A tensor is its number of entries, its sum and its sum of squares.
    """
    short: dict[str, dict[str, Any]] = {}
    for kind, values in sections.items():
        is_tensor = kind in ("weights", "start")
        short[kind] = {
            key: [value[0][1] if kind == "start" else math.prod(value[0]), *value[3:]] if is_tensor else value
            for key, value in values.items()
        }
    return short


def reproduced(first: Sections, second: Sections) -> dict[str, dict[str, Any]]:
    """Return the values that two recordings agree on.

    Args:
        first: The shortened sections of one recording.
        second: Those of the other.

    Returns:
        The values of the first recording that are within `REPRODUCED` of the second.
    """
    return {
        kind: {key: value for key, value in values.items() if is_close(kind, value, second[kind].get(key), REPRODUCED)}
        for kind, values in first.items()
    }


def is_close(kind: str, committed: Any, present: Any, tolerance: float = TOLERANCE) -> bool:
    """Return True if two values agree.

    Args:
        kind: The section that they belong to.
        committed: The committed value.
        present: The present value.
        tolerance: The largest relative difference. The sum of a tensor may differ by this part of the tensor's norm.

    Returns:
        True if numbers are within the tolerance and everything else is equal.
    """
    if kind in ("weights", "start"):
        if not isinstance(present, list) or committed[0] != present[0]:
            return False
        (_, total, squares), (_, other_total, other_squares) = committed, present
        is_sum_close = abs(total - other_total) <= tolerance * max(abs(total), math.sqrt(squares))
        return is_sum_close and abs(squares - other_squares) <= tolerance * squares
    if isinstance(committed, list):
        is_list = isinstance(present, list) and len(present) == len(committed)
        return is_list and all(is_close("", *pair, tolerance) for pair in zip(committed, present, strict=True))
    if is_number(committed) and is_number(present):
        is_undefined = math.isnan(committed) and math.isnan(present)
        return is_undefined or math.isclose(committed, present, rel_tol=tolerance, abs_tol=1e-12)
    return bool(committed == present)


def is_number(value: Any) -> bool:
    """Return True for an int or a float that is no bool.

    Args:
        value: Any plain value.

    Returns:
        True if the value is a number.
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def differences(case: str, committed: Sections, present: Sections) -> Iterable[str]:
    """Compare a case with its committed values.

    Args:
        case: The name of the case.
        committed: The committed sections, translated.
        present: The shortened sections of the present tree.

    Yields:
        A line for every value that differs: case, key, committed value and present value.
    """
    for kind, values in committed.items():
        others = present.get(kind, {})
        for key, value in values.items():
            where = f"case {case!r}, {kind} {key!r}: committed {value!r}"
            if key not in others:
                yield f"{where}, the present tree lacks it"
            elif not is_close(kind, value, others[key]):
                yield f"{where}, present {others[key]!r}"


if __name__ == "__main__":
    main()
