"""`python -m routelab.parity`: measure every reference that is installed and record the result in `routers/router_metadata.json`.

What is recorded of a package that is not installed stays as it is, and so does everything else in the file.
"""

from __future__ import annotations

import argparse
import sys

from routelab.parity.parity_record import installed, record
from routelab.parity.reference_table import REFERENCES
from routelab.routers.router_metadata import FACTS


def main() -> int:
    """Print one line for each reference. Exit code 1 if none could be measured."""
    measured = []
    for reference in REFERENCES:
        version = installed(reference.package)
        if version is None:
            print(f"{reference.router}: {reference.name} skipped, {reference.package} is not installed")
            continue
        found = reference.distance()
        measured.append((reference, version, found))
        losses = "" if found.losses is None else f", losses {found.losses:.1e}"
        print(
            f"{reference.router}: {reference.name} ({reference.package} {version}): "
            f"outputs {found.outputs:.1e}, gradients {found.gradients:.1e}{losses}"
        )
    if not measured:
        return 1
    record(measured)
    print(f"recorded in {FACTS}")
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m routelab.parity", description="Measure every installed reference and record the result."
    ).parse_args()
    sys.exit(main())
