"""Yardsticks of a data set: computed once, and kept beside the comparisons by the data's digest."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

from routelab.data.base import DataSet
from routelab.records.json_io import read_json, write_json


def yardsticks_of(data: DataSet, output: Path) -> list[dict[str, Any]]:
    """The data set's yardsticks as plain data (name, metric, value, note), [] if it brings none.

    They lie in `yardsticks/` beside the comparison's folder, as cells do, under an address made of the data and of the code
    that measured them.
    """
    if data.yardsticks is None:
        return []
    measured_by = inspect.getmodule(getattr(data.yardsticks, "func", data.yardsticks))
    code = "" if measured_by is None else inspect.getsource(measured_by)
    address = hashlib.sha256(f"{data.digest}\n{code}".encode()).hexdigest()[:20]
    place = output.parent / "yardsticks" / f"{address}.json"
    found = (read_json(place) or {}).get("yardsticks")
    if not isinstance(found, list):
        found = [asdict(yardstick) for yardstick in data.yardsticks()]
        write_json(place, {"data": data.task.name, "digest": data.digest, "yardsticks": found})
    return found
