"""The table of data sets, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from routelab.core.registry import Registry

if TYPE_CHECKING:
    from routelab.data.base import DataSet

DATA: Registry[Callable[..., DataSet]] = Registry(
    "data set",
    "routelab.data",
    {
        name: f"routelab.data.{name}:{name}"
        for name in (
            "breast_cancer",
            "digits",
            "domains",
            "flights",
            "hub",
            "letter",
            "mnist5k",
            "peterson_barney",
            "satimage",
            "vowel",
        )
    },
    contract="routelab.data.base:must_be_loader",
)
