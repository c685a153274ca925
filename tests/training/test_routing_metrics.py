"""Telemetry by hand for every plan type, and what is kept of it over training.

Axes: G groups, S positions, T = G * S tokens, E experts.
"""

import csv
import io
import math

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.data.base import load
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import ExpertWork, Router, Routing
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK
from routelab.routers.router_registry import ROUTERS
from routelab.tracking.load_heatmap import load_figure, load_table
from routelab.training.routing_metrics import Tally, first_choice


class Fixed(Router):
    """Routes as it is told."""

    def __init__(self, routing):
        super().__init__(4, routing.plan.num_experts)
        self.routing = routing

    def forward(self, inputs):
        return self.routing


def routed(plan, probs=None, groups=1, positions=4, mask=None, **options):
    """What a layer makes of a plan: its work, and the plan without padding and what capacity dropped."""
    bank = ExpertBank("relu", num_experts=plan.num_experts, d_model=4, d_hidden=4)
    layer = MixtureLayer(Fixed(Routing(plan, probs=probs)), bank, kernel="loop", **options)
    return layer(torch.ones(groups, positions, 4), mask=mask)[1]


def told(plan, probs=None, groups=1, positions=4, mask=None, before=None, **options):
    tally = Tally()
    tally.add([routed(plan, probs, groups, positions, mask, **options)], groups, positions, mask)
    return tally.summary(before)


def tensor(*rows):
    return torch.tensor(rows)


TOP2 = TopK(tensor([2, 0], [0, 1], [0, 2], [0, 1]), tensor([0.7, 0.3], [0.75, 0.25], [0.5, 0.5], [1.0, 0.0]), 4)
"""Loads 4, 2, 2, 0: mean 2."""


def entropy(*weights):
    return -sum(weight * math.log(weight) for weight in weights if weight)


def test_top_k():
    found = told(TOP2)
    assert found == pytest.approx(
        {
            "drop_rate": 0, "padding_share": 0, "load_cv": math.sqrt((4 + 0 + 0 + 4) / 4) / 2, "max_violation": 1, "dead_experts": 1,
            "experts_per_token": 2, "unrouted_share": 0,
            "entropy": (entropy(0.7, 0.3) + entropy(0.75, 0.25) + math.log(2)) / 4,
        }
    )  # fmt: skip


def test_the_routers_own_probabilities_make_the_entropy_where_it_gives_them():
    probs = tensor([0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25] * 4)
    assert told(TOP2, probs)["entropy"] == pytest.approx((2 * math.log(4) + math.log(2)) / 4)


def test_capacity_drops_rows_but_not_load():
    """Two rows an expert: expert 0 has room for two of its four tokens; with one choice each, one of three is left out."""
    found = told(TOP2, capacity_factor=1.0)
    assert found["drop_rate"] == pytest.approx(2 / 8)
    assert (found["max_violation"], found["experts_per_token"], found["unrouted_share"]) == (1, 2, 0)
    one = TopK(tensor([0], [0], [0], [1]), torch.ones(4, 1), 2)
    assert told(one, capacity_factor=1.0)["unrouted_share"] == 1 / 4


def test_padding_counts_nowhere():
    """Without token 3: loads 3, 1, 2, 0, mean 1.5."""
    mask = tensor([True, True, True, False])
    found = told(TOP2, mask=mask)
    assert found["max_violation"] == pytest.approx(1)
    assert found["load_cv"] == pytest.approx(math.sqrt((2.25 + 0.25 + 0.25 + 2.25) / 4) / 1.5)
    assert (found["experts_per_token"], found["unrouted_share"], found["drop_rate"]) == (2, 0, 0)
    assert found["entropy"] == pytest.approx((entropy(0.7, 0.3) + entropy(0.75, 0.25) + math.log(2)) / 3)


def test_per_expert():
    """Two groups of two tokens; three experts take one token of each group: token 1 of the first group goes without."""
    position = tensor([[0], [0], [0]], [[0], [1], [1]])
    found = told(PerExpert(position, torch.full((2, 3, 1), 0.5), 3), groups=2, positions=2)
    assert found["load_cv"] == found["max_violation"] == found["dead_experts"] == 0
    assert found["experts_per_token"] == 6 / 4
    assert found["unrouted_share"] == 1 / 4
    assert found["entropy"] == pytest.approx((math.log(3) + 0 + 0 + math.log(2)) / 4)


def test_ragged():
    """Tokens 0, 1 and 3 take two, one and three experts, token 2 none: loads 3, 2, 1."""
    plan = Ragged(
        torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([0, 1, 0, 0, 1, 2]), torch.tensor([0.5, 0.5, 2.0, 1.0, 1.0, 2.0]), 3
    )
    found = told(plan)
    assert found["experts_per_token"] == 6 / 4
    assert found["unrouted_share"] == 1 / 4
    assert found["max_violation"] == pytest.approx(3 / 2 - 1)
    assert found["load_cv"] == pytest.approx(math.sqrt(2 / 3) / 2)
    assert found["entropy"] == pytest.approx((math.log(2) + 0 + 0 + entropy(0.25, 0.25, 0.5)) / 4)


def test_slots():
    """Two experts of two slots for four tokens; every token takes 3/4 of its output from expert 0. One row per token."""
    combine = torch.tensor([0.5, 0.25, 0.125, 0.125]).view(1, 1, 2, 2).expand(1, 4, 2, 2)
    found = told(Slots(torch.full((1, 4, 2, 2), 0.25), combine, 2))
    assert found["max_violation"] == pytest.approx(0.5)
    assert found["load_cv"] == pytest.approx(0.5)
    assert (found["experts_per_token"], found["unrouted_share"], found["dead_experts"]) == (1, 0, 0)
    assert found["entropy"] == pytest.approx(entropy(0.75, 0.25))
    masked = told(Slots(torch.full((1, 4, 2, 2), 0.25), combine, 2), mask=tensor([True, True, False, False]))
    assert masked["max_violation"] == pytest.approx(0.5)
    assert masked["entropy"] == pytest.approx(entropy(0.75, 0.25))


def test_blend():
    weight = tensor([0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25])
    found = told(Blend(weight, 3))
    assert found["experts_per_token"] == 3
    assert found["max_violation"] == pytest.approx(0.5)
    assert found["load_cv"] == pytest.approx(math.sqrt(2) / 4)
    assert found["entropy"] == pytest.approx(1.5 * math.log(2))


def test_the_first_choice_is_the_one_of_largest_weight():
    tally = Tally()
    tally.add([routed(TOP2)], 1, 4)
    assert tally.first()[0].tolist() == [2, 0, 0, 0]
    weight, share = tensor([-1.0, 0.0], [0.0, 0.0]), tensor([1.0, 0.0], [0.0, 0.0])
    assert first_choice(weight, share).tolist() == [0, -1]


def test_churn_counts_real_tokens_whose_first_choice_changed():
    mask = tensor([True, True, True, False])
    before = Tally()
    before.add([routed(TOP2, mask=mask)], 1, 4, mask)
    swapped = TopK(TOP2.expert, TOP2.weight.flip(1), 4)
    # Token 0 goes from expert 2 to 0, token 1 from 0 to 1; token 2 has a tie, and token 3 is padding.
    assert told(swapped, mask=mask, before=before.first())["churn"] == pytest.approx(2 / 3)
    assert told(TOP2, mask=mask, before=before.first())["churn"] == 0


def test_layers_and_processes_are_put_together():
    tallies = [Tally(), Tally()]
    for tally, plan in zip(tallies, (TOP2, TopK(3 - TOP2.expert, TOP2.weight, 4)), strict=True):
        tally.add([routed(plan), routed(TOP2)], 1, 4)
    whole = Tally.merged(tallies)
    assert [load.tolist() for load in whole.loads()] == [[1, 1, 1, 1], [2, 1, 1, 0]]
    found = whole.summary()
    assert found["load_cv"] == pytest.approx((0 + math.sqrt(0.5)) / 2)
    assert found["dead_experts"] == 1
    assert found["experts_per_token"] == 2
    assert [first.tolist() for first in whole.first()] == [[2, 0, 0, 0, 1, 3, 1, 3], [2, 0, 0, 0] * 2]


def test_rows_of_training_steps():
    tally = Tally()
    tally.add_work([Routing(TOP2, work=ExpertWork(8, 6, 10)), Routing(TOP2)])
    assert tally.summary() == {"drop_rate": 0.25, "padding_share": 0.4}


@pytest.mark.parametrize("name", ROUTERS.names())
def test_every_router_is_told_within_bounds(name):
    """As an arm meets it: a small network on digits, before training."""
    data = load("digits")
    shape = {"name": "vit", "d_model": 16, "depth": 2, "heads": 2, "hidden": 16}
    arm = make_arm(ArmSpec(name, shape, {"count": 4}, {"allow_leak": True}), data.task, 0).eval()
    tallies = [Tally(), Tally()]
    with torch.no_grad():
        for tally in tallies:
            found = arm.predict(data.test.select(slice(0, 32)))
            groups = 32 if found.groups is None else found.groups
            tally.add(found.routings, groups, found.positions)
    first = tallies[0].summary()
    again = tallies[1].summary(tallies[0].first())
    assert again == first | {"churn": 0}, "an evaluation repeats itself"
    experts = len(tallies[0].load_LE[0])
    assert 0 <= first["entropy"] <= math.log(experts) + 1e-6
    assert 0 < first["experts_per_token"] <= experts
    assert 0 <= first["max_violation"] <= experts - 1
    assert 0 <= first["load_cv"] <= math.sqrt(experts - 1) + 1e-9
    assert 0 <= first["dead_experts"] < 2 * experts
    assert all(0 <= first[key] <= 1 for key in ("drop_rate", "padding_share", "unrouted_share"))
    assert all(load.mean() == pytest.approx(1) for load in tallies[0].loads())


RECORD = {
    "arm": "switch", "seed": 0, "curve": [{"step": 5, "flops": 1e6}, {"step": 10, "flops": 3e6}],
    "load": [[[1.0, 1.0], [2.0, 0.0, 1.0]], [[0.5, 1.5], [3.0, 0.0, 0.0]]],
}  # fmt: skip


def test_the_table_has_a_row_for_every_check_layer_and_expert():
    rows = list(csv.DictReader(io.StringIO(load_table(RECORD))))
    assert len(rows) == 2 * (2 + 3)
    assert rows[2] == {"step": "5", "flops": "1000000.0", "layer": "1", "expert": "0", "share": "0.666667", "load": "2.0"}
    assert load_table({"curve": [], "load": None}) is None


def test_the_figure_shows_the_loads_at_their_flops():
    figure = load_figure(RECORD)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["layer 0, 2 experts", "layer 1, 3 experts"]
    mesh = panels[1].collections[0]
    assert mesh.get_array().filled(0).tolist() == [[2, 3], [0, 0], [1, 0]]
    assert mesh.get_array().mask.tolist() == [[False, False], [True, True], [False, True]]
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 1e6, 3e6]
    assert mesh.norm(1.0) == 0.5
    assert load_figure({"arm": "dense", "load": None}) is None


def test_the_figure_is_of_the_last_stages_layers():
    stages = {**RECORD, "curve": [{"step": 1, "flops": 1e5}, *RECORD["curve"]], "load": [[[1.0]], *RECORD["load"]]}
    meshes = [axes.collections[0] for axes in load_figure(stages).axes if axes.get_title()]
    assert [mesh.get_coordinates()[0, :, 0].tolist() for mesh in meshes] == [[1e5, 1e6, 3e6]] * 2
    assert len(load_table(stages).splitlines()) == 1 + 1 + 2 * 5
