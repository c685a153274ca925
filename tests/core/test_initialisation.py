"""Initial values depend on declared names, so that attributes can be renamed."""

import pytest
import torch
from torch import nn

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.core.initialisation import init_names, init_paths, initialise, parameter_init_names
from routelab.core.registry import BUILT_IN
from routelab.core.seeds import key
from routelab.data.base import load
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.latent import Latent
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.build import build_router
from routelab.routers.router_registry import ROUTERS

PACKAGES = ("routers", "experts", "baselines", "routelab")
NAMED_BY_DATA = (FeedForward, ExpertBank, Latent, ZeroCompute)
"""Classes that register their parameters in a loop over strings, which name the generators too."""


class Old(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))
        self.inner = nn.Linear(2, 2)

    def init_parameters(self, generator):
        with torch.no_grad():
            self.weight.normal_(generator=generator("weight"))


class Renamed(nn.Module):
    init_names = {"matrix": "weight", "hidden": "inner"}

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 2))
        self.hidden = nn.Linear(2, 2)

    def init_parameters(self, generator):
        with torch.no_grad():
            self.matrix.normal_(generator=generator("weight"))


class Parent(nn.Module):
    init_names = {"first": ""}

    def __init__(self, child):
        super().__init__()
        self.first = child


def test_a_renamed_attribute_keeps_its_initial_values():
    old, renamed = Old(), Renamed()
    initialise(old, 3)
    initialise(renamed, 3)
    assert torch.equal(old.weight, renamed.matrix)
    assert torch.equal(old.inner.weight, renamed.hidden.weight)
    assert parameter_init_names(renamed) == {"matrix": "weight", "hidden.weight": "inner.weight", "hidden.bias": "inner.bias"}


def test_an_empty_name_is_the_name_of_the_parent():
    old, parent = Old(), Parent(Renamed())
    initialise(old, 5)
    initialise(parent, 5)
    assert torch.equal(old.weight, parent.first.matrix)
    assert [name for name, _ in init_paths(parent)] == ["", "", "inner"]


def test_a_subclass_adds_to_the_names_of_its_bases():
    class Child(Renamed):
        init_names = {"more": "further"}

    assert init_names(Child) == {"matrix": "weight", "hidden": "inner", "more": "further"}


def test_the_seed_of_a_name_is_frozen():
    # First 8 bytes of sha256("0/blocks.0.feed_forward/up/0"), shifted right by one bit.
    assert key(0, "blocks.0.feed_forward", "up/0") == 3074677196806027469


@pytest.mark.parametrize(
    ("backbone", "data"), [("vit", "digits"), ("mlp", "digits"), ("tokens", "flights"), ("decoder", "domains")]
)
def test_built_in_backbones_declare_the_name_of_every_part(backbone, data):
    task = load(data).task
    for name in ("dense", "topk"):
        arm = make_arm(ArmSpec(name, {"name": backbone, "depth": 1}, {"shared": 1} if name == "topk" else {}), task, 0)
        assert undeclared(arm.network) == []


@pytest.mark.parametrize("name", ROUTERS.names())
def test_built_in_routers_declare_the_name_of_every_parameter(name):
    if ROUTERS.origin(name) == BUILT_IN:
        assert undeclared(build_router(name, d_model=8, num_experts=1 if name == "mixture_of_depths" else 8)) == []


def undeclared(root):
    """Return the attributes of our own classes whose initial values would depend on the attribute's name."""
    missing = []
    for module in root.modules():
        is_ours = type(module).__module__.partition(".")[0] in PACKAGES
        if is_ours and not isinstance(module, (nn.ModuleList, *NAMED_BY_DATA)):
            attributes = [*dict(module.named_parameters(recurse=False)), *dict(module.named_children())]
            missing += [(type(module).__name__, name) for name in attributes if name not in init_names(type(module))]
    return missing
