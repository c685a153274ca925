"""Facts about the built-in routers, in `router_metadata.json`, for `routelab list`, which imports none of them.

Under each name: `causal`, `batch_coupled` and `paper` (`python -m routelab.conformance` records them), and `parity`, a list
of published implementations and the differences from them (`python -m routelab.parity` measures and records it).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("router_metadata.json")


def read(path: Path = FACTS) -> dict[str, Any]:
    """The whole file; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(facts: dict[str, Any], path: Path = FACTS) -> None:
    """Replace the file, routers in alphabetical order."""
    path.write_text(json.dumps(dict(sorted(facts.items())), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
