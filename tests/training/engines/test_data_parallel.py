"""Two processes with half of each batch give what one process with the whole batch gives."""

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from routelab.baselines.base import ArmSpec
from routelab.config.resolve import resolve
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.core.process_group import launch
from routelab.routers.losses import balance_loss, importance_loss, load_loss, sequence_balance_loss, z_loss
from routelab.training.observer import Observer
from routelab.training.run import execute

SMALL = {"name": "vit", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}


def spec(name, router=None, **changes):
    # Without clipping and with a plain rate, a difference in rounding is not blown up by Adam's first steps.
    return replace(
        RunSpec(
            name, ArmSpec(name, SMALL, {"count": 4}, router or {}), 3, {"name": "digits"}, Budget(steps=6), Optimizer(lr=5e-4),
            TrainerOptions(batch_size=32, accumulate=2, checks=3, accelerator="cpu"),
        ),
        **changes,
    )  # fmt: skip


PLUGIN = '''
import torch
from torch import nn
from routelab import Router, Routing, TopK, register_router


@register_router("balanced_by_bias")
class BalancedByBias(Router):
    """Top-1 whose bias follows the load, as DeepSeek-V3 does."""

    counts = ("load",)

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        self.register_buffer("bias", torch.zeros(num_experts))
        self.register_buffer("load", torch.zeros(num_experts))

    def forward(self, inputs):
        logits = inputs.x_TD @ self.weight.T
        expert = (logits + self.bias).topk(1).indices
        if self.training and torch.is_grad_enabled():
            self.load += torch.zeros_like(self.load).index_add_(0, expert.flatten(), torch.ones(len(expert)))
        return Routing(TopK(expert, logits.sigmoid().gather(1, expert), self.num_experts), logits=logits)

    def update(self):
        self.bias += 0.01 * torch.sign(self.load.mean() - self.load)
        self.load.zero_()
'''


class Listener(Observer):
    def __init__(self):
        self.steps = []

    def point(self, point):
        self.steps.append(point["step"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "router"),
    [
        ("dense", {}),
        # Dropless, as capacity is a matter of each process's share; no jitter, which each process draws for itself.
        ("switch", {"capacity_factor": None, "jitter": 0.0}),
        ("soft", {}),
        ("balanced_by_bias", {}),
        ("deepseek", {}),
        ("relu", {}),
        ("top_p", {}),
        ("bagging", {}),
        ("mixture_of_depths", {}),
        ("gated_mixture", {}),
    ],
)
def test_two_processes_equal_one(tmp_path, name, router):
    plugins = ()
    if name == "balanced_by_bias":
        (tmp_path / "plugin.py").write_text(PLUGIN)
        plugins = (str(tmp_path / "plugin.py"),)
        from routelab.core.plugins import load_plugin
        from routelab.routers.router_registry import ROUTERS

        if name not in ROUTERS:
            load_plugin(plugins[0])
    one = execute(spec(name, router, plugins=plugins), folder=tmp_path / "one").record
    heard = Listener()
    made = spec(name, router, plugins=plugins)
    both = execute(replace(made, trainer=replace(made.trainer, devices=2)), folder=tmp_path / "two", observer=heard).record
    assert both["status"] == one["status"] == "ok", (one["error"], both["error"])
    assert heard.steps == [2, 4, 6]
    for key in ("flops_model", "flops_executed", "flops_evaluation", "steps", "drop_rate", "flops_per_example_measured"):
        assert both[key] == one[key], key
    for mine, theirs in zip(one["curve"], both["curve"], strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"seconds", "router/churn", "router/load_cv", "router/max_violation", "router/dead_experts"}:
            assert theirs[key] == pytest.approx(mine[key], rel=2e-4, abs=1e-7), key
    assert both["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=2e-4)
    weights = [torch.load(tmp_path / part / "weights.ckpt", weights_only=True)["state_dict"] for part in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=2e-5)


TASKS = '''
import os
import torch
from torch import distributed
from routelab.routers.losses import balance_loss, importance_loss, load_loss, sequence_balance_loss, z_loss


def both(tell, probs, expert, mask):
    distributed.init_process_group("gloo")
    return losses(probs, expert, mask), sums(probs, expert, mask)


def losses(probs, expert, mask):
    """Gradient of the balance and z losses in one process's part."""
    part = slice(0, 3) if distributed.get_rank() == 0 else slice(3, 8)
    leaf = probs.clone().requires_grad_()
    loss = balance_loss(leaf[part].softmax(-1), expert[part], mask[part]) + z_loss(leaf[part], mask[part])
    loss.backward()
    total = torch.stack([loss.detach(), torch.tensor(0.0)])
    distributed.all_reduce(total)
    distributed.all_reduce(leaf.grad)
    return float(total[0] / 2), (leaf.grad / 2).tolist()


def sums(probs, expert, mask):
    """Gradient of losses of sums over tokens, and of means over sequences, in one process's part."""
    part = slice(0, 3) if distributed.get_rank() == 0 else slice(3, 8)
    leaf = probs.clone().requires_grad_()
    mine, real = leaf[part], mask[part]
    weight = mine.softmax(-1).gather(1, expert[part])
    loss = importance_loss(weight, expert[part], 3, real) + load_loss(mine, mine, mine.exp(), 2, real)
    loss = loss + sequence_balance_loss(mine.softmax(-1).unsqueeze(1), expert[part].unsqueeze(1), real.unsqueeze(1))
    loss.backward()
    value = loss.detach().clone()
    distributed.all_reduce(value)
    distributed.all_reduce(leaf.grad)
    return float(value / 2), (leaf.grad / 2).tolist()


def fails(tell):
    raise RuntimeError(f"process {os.environ['RANK']} gave up")
'''


@pytest.fixture
def tasks(importable):
    return importable("tasks_of_a_group", TASKS)


PROBS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
EXPERT = torch.tensor([[0, 1], [0, 2], [1, 2], [0, 1], [2, 1], [0, 1], [0, 2], [1, 0]])
MASK = torch.tensor([True, True, True, True, False, True, True, True])


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Compute (value, gradient) of `losses` and of `sums` in one group of two processes, because a start takes seconds."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "two_tasks_of_a_group.py").write_text(TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield launch(importlib.import_module("two_tasks_of_a_group").both, (PROBS, EXPERT, MASK), 2, print)
    sys.modules.pop("two_tasks_of_a_group")


def test_losses_of_unequal_halves_average_to_the_loss_of_the_whole(halves):
    """Three real tokens here, four there: a mean of means would be another number."""
    leaf = nn.Parameter(PROBS.clone())
    whole = balance_loss(leaf.softmax(-1), EXPERT, MASK) + z_loss(leaf, MASK)
    whole.backward()
    value, gradient = halves[0]
    assert value == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(torch.tensor(gradient), leaf.grad)


def test_sums_of_unequal_halves_give_the_loss_of_the_whole(halves):
    """CV^2 is no mean over tokens; sequences of one token each, of which one has none, are three here and four there."""
    leaf = nn.Parameter(PROBS.clone())
    whole = importance_loss(leaf.softmax(-1).gather(1, EXPERT), EXPERT, 3, MASK)
    whole = whole + load_loss(leaf, leaf, leaf.exp(), 2, MASK)
    whole = whole + sequence_balance_loss(leaf.softmax(-1).unsqueeze(1), EXPERT.unsqueeze(1), MASK.unsqueeze(1))
    whole.backward()
    value, gradient = halves[1]
    assert value == pytest.approx(float(whole), rel=1e-5)
    torch.testing.assert_close(torch.tensor(gradient), leaf.grad)


@pytest.mark.long
def test_a_failing_process_ends_the_group_with_its_error(tasks):
    with pytest.raises(Exception, match="gave up"):
        launch(tasks.fails, (), 2, print)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="trainer.batch_size=9 must be a multiple of trainer.devices=2"):
        resolve(["trainer.devices=2", "trainer.batch_size=9"])
