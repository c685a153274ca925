"""The router of examples/steady.py: its loss by hand, and a registered name."""

import importlib.util
from pathlib import Path

import pytest
import torch

from routelab.core.plugins import load_plugin
from routelab.core.registry import only_for_now
from routelab.routers.build import build_router
from routelab.routers.router_registry import ROUTERS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "steady.py"


def test_its_loss_is_the_probability_that_neighbours_draw_different_experts():
    with only_for_now(ROUTERS):
        spec = importlib.util.spec_from_file_location("steady_example", EXAMPLE)
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
    probs = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    # Neighbours differ with the probabilities 1/2, 1/2, 1/2 and 1, 1, 0.
    assert example.disagreement(probs).item() == pytest.approx((1.5 + 2) / 6)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    assert example.disagreement(probs, mask).item() == pytest.approx((0.5 + 2) / 4)
    assert example.disagreement(probs[:, :1]).item() == 0


def test_it_is_a_plugin_in_one_file():
    with only_for_now(ROUTERS):
        load_plugin(str(EXAMPLE))
        router = build_router("steady", d_model=4, num_experts=3)
        assert dict(router.loss_weights) == {"balance": 0.01, "change": 0.02}
