"""Every name that a package exports on first use can be imported."""

import importlib

import pytest

PACKAGES = ("routelab", *(f"routelab.{name}" for name in (
    "backbones", "baselines", "conformance", "data", "experts", "routers", "sweeps"
)))  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_exported_names_can_be_imported(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None, name
