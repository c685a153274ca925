"""Public names of the packages that import them on first use."""

import importlib

import pytest

PACKAGES = (
    "routelab", "routelab.routers", "routelab.experts", "routelab.backbones", "routelab.baselines", "routelab.data", "routelab.sweeps",
    "routelab.conformance",
)  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_module_that_the_package_names(package):
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert set(module.__all__) <= set(dir(module))
