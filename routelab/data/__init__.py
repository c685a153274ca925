"""Real data that arrive with a pip install: one data set to a file."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.data.base import DATA, DataSet, Order, Yardstick, holds, load, register_data

__all__ = ["DATA", "DataSet", "Order", "Yardstick", "holds", "load", "register_data"]

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "routelab.data.base"))
