"""Train every case of the golden test and write its values: `python tests/golden/record.py OUT.json`.

The script runs under commit f3c8993 and under every later layout. It imports the public API alone: `train` and `compare` of
`routelab`. Other names go through `key_map.py`.
"""

# ruff: noqa: E402, I001 -- the number of threads must be set before numpy and torch are imported.

from __future__ import annotations

import os

# scikit-learn's boosting takes as many threads as it can get, and the order of its sums depends on their number.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import csv
import hashlib
import importlib
import json
import math
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from golden_cases import COMPARED, TRAINED
from key_map import KEY_MAP, ORIGINAL, KeyMap

# Values of the clock and of the machine, and provenance. Addresses are digests of settings, which change with renamed keys.
LEFT_OUT = re.compile(
    r"(^|.*\.)(\w*seconds\w*|\w*per_second|time_ratio|inference|peak|resumed_at|shared_steps|provenance|config|folder|traceback|"
    r"problems|cells)(\..*)?"
)
TEXTS = re.compile(r"status|error|metric|data|(.*\.)?(state|verdict)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Record the cases that the command line names.

    Args:
        arguments: The arguments. None takes those of the process.
    """
    parser = argparse.ArgumentParser(description="Train every case of the golden test and write its values.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, help="fail unless routelab is imported from below this folder")
    parser.add_argument("--original", action="store_true", help="use the names of commit f3c8993")
    parser.add_argument("--only", default="", help="a regular expression: the cases to record, with the cases they build on")
    options = parser.parse_args(arguments)
    recording = record(ORIGINAL if options.original else KEY_MAP, root=options.root, only=options.only)
    options.out.write_text(json.dumps(recording, indent=0))
    print(f"{len(recording['cases'])} cases, {recording['cpu_seconds']:.0f} CPU seconds: {options.out}")


def record(key_map: KeyMap, *, root: Path | None = None, only: str = "") -> dict[str, Any]:
    """Train the cases and return their values.

    Args:
        key_map: The names of the tree that is imported.
        root: The folder that `routelab` must lie below.
        only: A regular expression for the names of the cases. The empty one matches all.

    Returns:
        The values by case, section and key, as plain data.

    Raises:
        RuntimeError: `routelab` is imported from another folder, or a run failed.
    """
    routelab = importlib.import_module("routelab")
    source = Path(str(routelab.__file__)).resolve()
    if root is not None and not source.is_relative_to(root.resolve()):
        raise RuntimeError(f"routelab is imported from {source}; it must lie below {root.resolve()}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    started = _cpu_seconds()
    cases: dict[str, Any] = {}
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(key_map, Path(folder), routelab)
        for name in selected(only):
            before = _cpu_seconds()
            cases[name] = recorder.train(name)
            costs[name] = _cpu_seconds() - before
        for name in COMPARED:
            if re.search(only, f"compare/{name}"):
                before = _cpu_seconds()
                cases[f"compare/{name}"] = recorder.compare(name)
                costs[f"compare/{name}"] = _cpu_seconds() - before
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "key_map": key_map.version,
        "source": str(source),
        "cpu_seconds": _cpu_seconds() - started,
        "costs": costs,
        "cases": cases,
    }


def _cpu_seconds() -> float:
    times = os.times()
    # Workers of a comparison are children.
    return times.user + times.system + times.children_user + times.children_system


def selected(only: str) -> list[str]:
    """Return the names of the trained cases that match, and of those that they build on.

    Args:
        only: A regular expression.

    Returns:
        Names in the order of `TRAINED`.
    """
    wanted = {name for name in TRAINED if re.search(only, name)}
    for name in list(wanted):
        wanted.update(re.findall(r"'@([^']+)'", repr(TRAINED[name])))
    return [name for name in TRAINED if name in wanted]


class Recorder:
    """The cases' runs in one folder, and their values."""

    def __init__(self, key_map: KeyMap, folder: Path, routelab: Any) -> None:
        """Prepare a recorder.

        Args:
            key_map: The names of the tree that is imported.
            folder: The folder for the runs.
            routelab: The package.
        """
        self.key_map, self.folder, self.routelab = key_map, folder, routelab
        self.runs: dict[str, str] = {}

    def train(self, name: str) -> dict[str, Any]:
        """Train one case and return its values.

        Args:
            name: A key of `TRAINED`.

        Returns:
            The sections `record`, `weights` and `start`, values by key.

        Raises:
            RuntimeError: The run failed.
        """
        config = self._config(TRAINED[name], name)
        with _Starts() as starts:
            run = self.routelab.train(config)
        kept = self._attribute(run, "record")
        if kept[self.key_map.record.translate("status")] != "ok":
            raise RuntimeError(f"case {name!r} failed: {kept[self.key_map.record.translate('error')]}")
        self.runs[name] = kept[self.key_map.record.translate("folder")]
        arm = self._attribute(run, "arm")
        weights = {key: tensor_values(value) for key, value in arm.state_dict().items() if isinstance(value, torch.Tensor)}
        return {"record": flatten(kept), "weights": weights, "start": starts.values}

    def compare(self, name: str) -> dict[str, Any]:
        """Run one comparison and return its values.

        Args:
            name: A key of `COMPARED`.

        Returns:
            The sections `summary` and `columns:FILE`, values by key.

        Raises:
            RuntimeError: A run failed.
        """
        compared = self.routelab.compare(self._config(COMPARED[name], f"compare/{name}"))
        if self._attribute(compared, "failed"):
            raise RuntimeError(f"comparison {name!r} has runs that failed")
        output = Path(self._attribute(compared, "output"))
        sections: dict[str, Any] = {}
        summary = json.loads((output / str(self.key_map.files.translate("summary.json"))).read_text())
        sections["summary"] = flatten(summary)
        for file in ("results.csv", "domains.csv", "endpoints.csv"):
            path = output / str(self.key_map.files.translate(file))
            if path.is_file():
                sections[f"columns:{file}"] = columns_of(path)
        return sections

    def _config(self, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        output = self.folder / name.replace("/", "-")
        config = self.key_map.translate_config({**self._with_runs(config), "output": str(output)})
        return nested(config)

    def _with_runs(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._with_runs(part) for key, part in value.items()}
        if isinstance(value, str) and value.startswith("@"):
            return self.runs[value[1:]]
        return value

    def _attribute(self, owner: Any, name: str) -> Any:
        kind = {"record": "Run", "arm": "Run"}.get(name, "Comparison")
        translated = str(self.key_map.attributes.translate(f"{kind}.{name}"))
        return getattr(owner, translated.partition(".")[2])


class _Starts:
    """The parameters and gradients before the first step of every optimizer: initial weights, and those of later stages.

    A digest of sorted entries depends neither on names nor on the order of the parameters.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._known: list[torch.optim.Optimizer] = []

    def __enter__(self) -> _Starts:
        self._hook = register_optimizer_step_pre_hook(self._before_step)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if any(optimizer is known for known in self._known):
            return
        prefix = f"{len(self._known)}"
        self._known.append(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for name, tensors in (("weights", parameters), ("gradients", gradients)):
            entries = sorted(tensor_values(tensor) for tensor in tensors)
            self.values[f"{prefix}.{name}"] = [
                [len(entries), sum(math.prod(entry[0]) for entry in entries)],
                "",
                hashlib.sha256(json.dumps([entry[:3] for entry in entries]).encode()).hexdigest()[:32],
                math.fsum(entry[3] for entry in entries),
                math.fsum(entry[4] for entry in entries),
            ]


def tensor_values(tensor: torch.Tensor) -> list[Any]:
    """Return the recorded values of a tensor.

    Args:
        tensor: Any tensor.

    Returns:
        Its shape, type, the digest of its bytes, and the sum and the sum of squares in float64.
    """
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:32] if plain.numel() else ""
    values = plain.to(torch.float64)
    return [list(plain.shape), str(plain.dtype), digest, float(values.sum()), float(values.square().sum())]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the numbers of a tree, and its texts about results, by their dotted paths.

    Args:
        tree: Nested mappings and lists of plain values.
        prefix: The path of the tree itself.

    Returns:
        The values that do not depend on the clock or the machine.
    """
    if prefix and LEFT_OUT.fullmatch(prefix):
        return {}
    if isinstance(tree, Mapping):
        parts = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        parts = list(enumerate(tree))
    else:
        is_kept = tree is None or isinstance(tree, (bool, int, float)) or TEXTS.fullmatch(prefix)
        # After the colon, a verdict is a sentence with ratios of times.
        return {prefix: tree.partition(":")[0] if isinstance(tree, str) else tree} if is_kept else {}
    flat: dict[str, Any] = {prefix: len(parts)} if prefix and not parts else {}
    for key, value in parts:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with dotted keys as nested mappings.

    Args:
        flat: Values by dotted keys.

    Returns:
        Nested dicts.
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def columns_of(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a CSV file, without those of the clock and the machine.

    Args:
        path: The file.

    Returns:
        Values by header. Numbers are floats.
    """
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    headers = [header for header in (rows[0] if rows else {}) if not LEFT_OUT.fullmatch(header)]
    return {header: [_number(row[header]) for row in rows] for header in headers}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
