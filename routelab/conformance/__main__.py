"""`python -m routelab.conformance`: record dependence and paper of every built-in router in `routers/router_metadata.json`.

All else in the file stays as it is.
"""

from __future__ import annotations

import argparse

from routelab.conformance.router_facts import all_facts
from routelab.routers.router_metadata import FACTS, read, write


def main() -> None:
    """Record, and say where."""
    recorded = read()
    for name, facts in all_facts().items():
        recorded[name] = facts | {key: value for key, value in recorded.get(name, {}).items() if key not in facts}
    write(recorded)
    print(f"recorded in {FACTS}")


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m routelab.conformance", description="Record dependence and paper of every built-in router."
    ).parse_args()
    main()
