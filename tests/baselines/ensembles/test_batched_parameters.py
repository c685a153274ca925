"""Every built-in backbone takes stacked parameters, to what vmap gives; a network that does not is mapped."""

import copy

import pytest
import torch
from torch import nn

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.ensembles.batched_parameters import Stacked, places_of, run_stacked
from routelab.baselines.ensembles.member_networks import stack_parameters
from routelab.baselines.ensembles.vectorized_forward import Together, random_inputs
from routelab.data.task import Batch, InputSpec, Task

IMAGE, NUMBERS, TEXT = InputSpec("image", (1, 8, 8)), InputSpec("table", (4,)), InputSpec("text", (5,), vocab_size=7)
MIXED, CODES = InputSpec("table", (4,), categories=(0, 3, 0, 5)), InputSpec("table", (2,), categories=(3, 5))
CASES = [
    ("mlp", IMAGE, {}, False),
    ("mlp", NUMBERS, {}, False),
    ("mlp", MIXED, {}, False),
    ("mlp", CODES, {}, False),
    ("tokens", MIXED, {"heads": 2}, True),
    ("tokens", CODES, {"heads": 2}, True),
    ("vit", IMAGE, {"heads": 2}, True),
    ("decoder", TEXT, {"heads": 2}, True),
    ("decoder", TEXT, {"heads": 2, "tied": True}, True),
]


def arm_of(name, inputs, options, **experts):
    task = Task("toy", "language" if inputs.kind == "text" else "classification", inputs, 7)
    return make_arm(
        ArmSpec("ensemble", {"name": name, "d_model": 8, "depth": 2, **options}, experts, {}, {"members": 3}), task, 0
    )


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize(("name", "inputs", "options", "below"), CASES)
def test_stacked_is_mapped(name, inputs, options, below, kind):
    """Outputs and gradients, for batches shared, apart, and of one example; without a call of vmap."""
    arm = arm_of(name, inputs, options, kind=kind, bias=kind == "gelu")
    together = arm.members.together
    assert together.below is below
    parameters = dict(arm.members.network.named_parameters())
    random = torch.Generator().manual_seed(1)
    for lead in ((6,), (3, 6), (3, 1)):
        given, found = Batch(random_inputs(inputs, lead, random), torch.zeros(lead)), []
        for mapped in (True, False):
            together.below = None if mapped else below
            out = together(parameters, given, len(lead) == 2)
            assert out.shape[:2] == (3, lead[-1])
            found.append([out, *torch.autograd.grad(out.square().sum(), list(parameters.values()))])
        torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert dict(arm.members.network.named_parameters()).keys() == parameters.keys()


class Tied(nn.Module):
    """A head that is the embedding, a scale that stands in two places, and a module that does."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.rand(4))
        self.same_scale = self.scale
        self.inner = nn.Linear(4, 4)
        self.same_inner = self.inner

    def forward(self, x, mask=None):
        hidden = self.inner(self.embedding(x) * self.scale)
        return self.head(self.same_inner(hidden) * self.same_scale), []


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_tied_stays_tied(mapped):
    """Each member answers, and learns, as it would alone: with one matrix for its embedding and its head."""
    alone, template = [Tied() for _ in range(3)], arm_of(*CASES[-2][:3]).template
    networks = [copy.deepcopy(network) for network in alone]
    together = Together(networks[0], template)
    stack_parameters(networks[0], networks)
    assert together.below is False
    together.below = None if mapped else False
    parameters, x = dict(networks[0].named_parameters()), torch.randint(7, (3, 5, 6))
    assert sum(value.numel() for value in parameters.values()) == 3 * sum(value.numel() for value in alone[0].parameters())
    found = together(parameters, Batch(x, x), True)
    expected = torch.stack([network(x[number])[0] for number, network in enumerate(alone)])
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, value in parameters.items():
        torch.testing.assert_close(value.grad, torch.stack([dict(one.named_parameters())[name].grad for one in alone]))


def test_padding_is_masked():
    arm = arm_of(*CASES[-1][:3])
    inputs = torch.randint(7, (3, 4, 6))[..., :-1]
    mask = torch.arange(5).expand(3, 4, 5) < torch.randint(1, 6, (3, 4, 1))
    parameters, together = dict(arm.members.network.named_parameters()), arm.members.together
    found = together(parameters, Batch(inputs, inputs, mask), True)
    together.below = None
    torch.testing.assert_close(found, together(parameters, Batch(inputs, inputs, mask), True), atol=1e-5, rtol=1e-4)


class Unusual(nn.Module):
    """As a backbone answers, by ways that stacked parameters do not know, or that come out wrong with them."""

    def __init__(self, way):
        super().__init__()
        self.way, self.weight = way, nn.Parameter(torch.randn(4, 7))

    def forward(self, x, mask=None):
        if self.way == "an unknown operation":
            return torch.einsum("bi,io->bo", x, self.weight), []
        if self.way == "a shape":
            return x.view(-1, self.weight.shape[0]) @ self.weight, []
        # What mixes examples would mix those of other members.
        return (x - x.mean(0)) @ self.weight, []


@pytest.mark.parametrize("way", ["an unknown operation", "a shape", "a mean over examples"])
def test_other_networks_are_mapped(way):
    network = Unusual(way)
    together = Together(network, arm_of(*CASES[1][:3]).template)
    assert together.below is None
    weight, x = torch.randn(3, 4, 7), torch.randn(3, 6, 4)
    out = together({"weight": weight}, Batch(x, torch.zeros(3, 6)), True)
    expected = x - x.mean(1, keepdim=True) if way.startswith("a mean") else x
    torch.testing.assert_close(out, expected @ weight)


def test_a_failure_leaves_the_parameters_in_place():
    network = Unusual("an unknown operation")
    with pytest.raises(TypeError):
        run_stacked(network, places_of(network), {"weight": torch.randn(3, 4, 7)}, torch.randn(3, 6, 4), None, False)
    assert isinstance(network.weight, nn.Parameter)


def test_a_parameter_with_an_entry_for_each_example_is_refused():
    with pytest.raises(TypeError, match="one for the examples"):
        torch.randn(6, 4) + Stacked(torch.randn(3, 2, 4))
