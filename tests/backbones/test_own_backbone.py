"""A backbone of one's own, in one file: registered, compared, and charged for its FLOPs without a formula."""

import pytest
import torch
from torch import nn

from routelab.backbones.base import BACKBONES, Backbone, Slot
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.comparison.compare import compare
from routelab.core.errors import UsageError
from routelab.core.plugins import load_plugin
from routelab.core.registry import only_for_now
from routelab.data.task import InputSpec, Task

PLUGIN = '''
import torch
from torch import nn
from routelab.backbones import Backbone, Slot, register_backbone


@register_backbone("rows_of_pixels")
class RowsOfPixels(Backbone):
    """Every row of an image is a token; one mixture between two linear maps."""

    def __init__(self, inputs, outputs, feed_forward, *, d_model: int = 16):
        super().__init__(inputs, outputs)
        channels, height, width = inputs.shape
        self.d_model, self.positions = d_model, height
        self.embed = nn.Linear(channels * width, d_model)
        self.layer = feed_forward(Slot(0, d_model, height))
        self.head = nn.Linear(d_model, outputs)

    def forward(self, x, mask=None):
        hidden = self.embed(x.transpose(1, 2).flatten(2))
        if getattr(self.layer, "routes", False):
            out, routing = self.layer(hidden)
            return self.head((hidden + out).mean(1)), [routing]
        return self.head((hidden + self.layer(hidden)).mean(1)), []
'''


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["dense", "switch"])
def test_counted_cost_is_the_formula(device, name):
    """The vit has a formula; the default of the contract must find the same."""
    spec = ArmSpec(name, {"name": "vit", "d_model": 16, "depth": 2, "heads": 2, "patch_size": 2}, {"count": 4, "hidden": 24})
    arm = make_arm(spec, Task("toy", "classification", InputSpec("image", (1, 8, 8)), 3), 0, sizing=device == "meta")
    formula, counted = arm.network.cost(5), Backbone.cost(arm.network, 5)
    assert counted.forward == formula.forward
    assert counted.backward == formula.backward
    assert all(parameter.grad is None for parameter in arm.network.parameters())
    if device == "cpu":
        # The layers are themselves again.
        out, routings = arm.network(torch.randn(5, 1, 8, 8))
        assert out.shape == (5, 3)
        assert len(routings) == (2 if name == "switch" else 0)


class Normed(Backbone):
    """Batch norm, which learns from what it is shown in training, and refuses a batch of one there."""

    positions = 1

    def __init__(self, inputs, outputs, feed_forward, *, d_model: int = 8):
        super().__init__(inputs, outputs)
        self.d_model = d_model
        self.embed, self.norm, self.head = nn.Linear(4, d_model), nn.BatchNorm1d(d_model), nn.Linear(d_model, outputs)
        self.memory = nn.GRU(d_model, d_model, batch_first=True)
        self.layer = feed_forward(Slot(0, d_model, 1))

    def forward(self, x, mask=None):
        hidden, _ = self.memory(self.norm(self.embed(x)).unsqueeze(1))
        return self.head(self.layer(hidden).squeeze(1)), []


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_a_network_as_it_was(training):
    with only_for_now(BACKBONES):
        BACKBONES.register("normed")(Normed)
        task = Task("toy", "classification", InputSpec("table", (4,)), 3)
        network = make_arm(ArmSpec("dense", {"name": "normed"}), task, 0).network.train(training)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert network.cost(1).forward * 5 == network.cost(5).forward > 0
        # Frozen, as a member whose stage is over and a teacher are, it costs what it did.
        assert network.requires_grad_(False).cost(10) == 2 * network.cost(5)
        assert not any(parameter.requires_grad for parameter in network.parameters())
        with pytest.raises(UsageError, match="backbone 'normed' keeps state in buffers, as batch norm does"):
            make_arm(ArmSpec("batch_ensemble", {"name": "normed"}), task, 0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training is training for module in network.modules())


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")
def test_a_plugin_backbone_is_compared(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    with only_for_now(BACKBONES):
        load_plugin(str(tmp_path / "mine.py"))
        done = compare(
            [
                f"output={tmp_path}/results/mine",
                f"tracking.uri=sqlite:///{tmp_path}/results/mlflow.db",
                "budget.steps=4",
                "trainer.checks=2",
                "backbone=rows_of_pixels",
                "seeds=1",
                "arms=[dense,switch,soft]",
                "workers=1",
                f"plugins=[{tmp_path}/mine.py]",
            ]
        )
    assert [record["status"] for record in done.records] == ["ok"] * 3
    assert all(abs(arm["flops_ratio"] - 1) <= 0.02 for arm in done.summary["arms"].values())
