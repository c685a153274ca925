"""Data sets and tasks: one file for each data set."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.data.base import DATA, DataSet, Order, Yardstick, holds, load, register_data

__all__ = ["DATA", "DataSet", "Order", "Yardstick", "holds", "load", "register_data"]

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "routelab.data.base"))
