"""What the docstring of every built-in router must tell."""

import inspect
import re

import pytest

from routelab.core.options import option_names
from routelab.routers.router_registry import ROUTERS

BUILT_IN = [name for name in ROUTERS.names() if ROUTERS.origin(name) == "built in"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_source_options_parameters_and_dependence(name):
    router = ROUTERS.get(name)
    text = inspect.getdoc(router)
    # A router that only changes another's defaults may leave the options to the other's text.
    maker = next(kind for kind in router.__mro__ if "__init__" in vars(kind))
    whole = text + inspect.getdoc(maker)
    assert re.search(r"\b(19|20)\d\d\b", text), "the year of the paper"
    assert re.search(r"parameter", text, re.IGNORECASE)
    assert re.search(r"\bcausal|later tokens?\b", text, re.IGNORECASE)
    assert re.search(r"batch-coupled|couples the batch", text)
    for option in option_names(router):
        assert f"`{option}`" in whole, option
    for loss in router.loss_weights:
        assert f"`{loss}`" in whole, loss
