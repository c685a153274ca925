"""BatchEnsemble's members against the package `tabm`, and against networks with the scaled matrices written out."""

import pytest
import torch
from torch import nn

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.ensembles.batch_ensemble import Sharing, scale
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task

SMALL = {"name": "mlp", "d_model": 8, "depth": 2, "hidden": 12}


def arm_of(backbone=SMALL, **options):
    task = Task("toy", "classification", InputSpec("table", (5,)), 3)
    return make_arm(ArmSpec("batch_ensemble", backbone, options={"members": 3, **options}), task, 0)


def batch_of(size=6):
    random = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 5, generator=random), torch.arange(size) % 3)


class TwoLayers(nn.Module):
    """As a backbone answers: outputs and no routings."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x, mask=None):
        return self.second(torch.relu(self.first(x))), []


def test_layers_are_tabm_s():
    """The same weights, factors and biases: the same outputs and gradients as two of tabm's LinearBatchEnsemble."""
    tabm = pytest.importorskip("tabm")
    torch.manual_seed(0)
    sharing = Sharing(TwoLayers(), arm_of().template, [1, 2, 3, 4], "normal")
    theirs = [tabm.LinearBatchEnsemble(inside, outside, k=4, scaling_init="ones") for inside, outside in ((5, 7), (7, 3))]
    with torch.no_grad():
        for name, layer in zip(("first", "second"), theirs, strict=True):
            mine = sharing.network.get_submodule(name)
            mine.bias.normal_()
            layer.weight.copy_(mine.weight)
            layer.bias.copy_(mine.bias)
            # torch's matrices are (out, in): what scales their columns scales the inputs.
            layer.r.copy_(sharing.columns[f"{name}-weight"])
            layer.s.copy_(sharing.rows[f"{name}-weight"])
    batch = batch_of()
    values = sharing(batch, False).values
    hidden = torch.relu(theirs[0](batch.inputs.unsqueeze(1).expand(-1, 4, -1)))
    expected = theirs[1](hidden).transpose(0, 1)
    torch.testing.assert_close(values, expected)
    values.square().sum().backward()
    expected.square().sum().backward()
    for name, layer in zip(("first", "second"), theirs, strict=True):
        mine = sharing.network.get_submodule(name)
        pairs = [(mine.weight, layer.weight), (mine.bias, layer.bias)]
        pairs += [(sharing.columns[f"{name}-weight"], layer.r), (sharing.rows[f"{name}-weight"], layer.s)]
        for one, other in pairs:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", [SMALL, {"name": "tokens", "d_model": 8, "depth": 1, "heads": 2}])
def test_members_are_networks_with_scaled_matrices(backbone):
    arm, batch = arm_of(backbone, scaling="normal"), batch_of()
    alone = make_arm(ArmSpec("dense", backbone), arm.task, 0)
    values = arm.members(batch, False).values
    for member in range(3):
        with torch.no_grad():
            for name, parameter in alone.network.named_parameters():
                mine = dict(arm.members.network.named_parameters())[name]
                if parameter.ndim >= 2:
                    rows, columns = (part[name.replace(".", "-")][member] for part in (arm.members.rows, arm.members.columns))
                    parameter.copy_(mine * rows.outer(columns))
                else:
                    parameter.copy_(mine[member])
        torch.testing.assert_close(values[member], alone.network(batch.inputs)[0])


def test_members_differ_from_the_start_and_all_learn():
    arm, batch = arm_of(), batch_of()
    arm.prepare(batch)
    found = arm.predict(batch).members
    assert (found[0] - found[1]).abs().max() > 0.1
    loss = arm.loss(batch, torch.arange(6))
    loss.total.backward()
    torch.testing.assert_close(loss.total, arm.task.loss(found.flatten(0, 1), batch.targets.repeat(3)).mean())
    for name, parameter in arm.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert len(arm.parameter_groups()[0].parameters) + len(arm.parameter_groups()[1].parameters) == len(list(arm.parameters()))


def test_parameters_by_hand():
    """5 -> 8, two feed-forwards 8 -> 12 -> 8, 8 -> 3; vectors: biases 8 + 3, norms 3 x 2 x 8."""
    arm = arm_of()
    shared = 5 * 8 + 2 * 2 * 8 * 12 + 8 * 3
    own = (5 + 8) + 4 * (8 + 12) + (8 + 3) + (8 + 3) + 3 * 2 * 8
    assert arm.total_params == shared + 3 * own == sum(parameter.numel() for parameter in arm.parameters())
    task = arm.task
    assert make_arm(arm.spec, task, 0, sizing=True).total_params == arm.total_params
    assert arm.flops_per_example() == 3 * arm.template.flops_per_example()


def test_initial_factors():
    signs = scale(4000, "random-signs", 1)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.1
    drawn = scale(4000, "normal", 1)
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "switch"}, "base is 'switch'; it must be dense"),
        ({"scaling": "ones"}, "it must be one of random-signs, normal"),
    ],
)
def test_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        arm_of(**options)
