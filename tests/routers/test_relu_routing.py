"""ReLU router: positive logits, a penalty on busy experts, and a lambda that finds the wanted sparsity."""

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.data.task import Batch, InputSpec, Task
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.relu_routing import weighted_l1


def by_hand(**options):
    router = build_router("relu", d_model=1, num_experts=3, **options)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0], [0.5], [-1.0]]))
    return router


X = torch.tensor([[[2.0], [-3.0], [0.0], [4.0]]])
"""Gates [2, 1, 0], [0, 0, 3], [0, 0, 0], [4, 2, 0]: counts 2, 2, 1."""


def test_choices_and_weights_by_hand():
    plan = by_hand()(RouterInput(X)).plan
    assert plan.token.tolist() == [0, 0, 1, 3, 3]
    assert plan.expert.tolist() == [0, 1, 2, 0, 1]
    assert plan.weight.tolist() == [2, 1, 3, 4, 2]


def test_penalty_by_hand():
    """f = 3 / 4 * [2, 2, 1]; sums of the gates 6, 3, 3; (1.5 * 6 + 1.5 * 3 + 0.75 * 3) / 4 = 3.9375."""
    assert by_hand(penalty_start=1.0)(RouterInput(X)).losses["l1"].item() == pytest.approx(3.9375)
    assert by_hand(penalty_start=0.5, top_k=2)(RouterInput(X)).losses["l1"].item() == pytest.approx(3.9375 / 4)
    # Without the last token: f = [1, 1, 1], sums 2, 1, 3, three tokens.
    mask = torch.tensor([[True, True, True, False]])
    assert by_hand(penalty_start=1.0)(RouterInput(X, mask=mask)).losses["l1"].item() == pytest.approx(2.0)


def test_the_target_balanced_costs_what_plain_l1_costs():
    """With every expert used by k T / E tokens, f is 1."""
    gate = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert weighted_l1(gate, torch.tensor([1.0, 1.0]), torch.ones(2), 1).item() == pytest.approx(2.0)


def test_lambda_follows_the_measured_sparsity():
    """5 of 12 used: more than 1 of 3 raises lambda, less than 2 of 3 lowers it."""
    for top_k, factor in ((1, 1.2), (2, 1 / 1.2)):
        router = by_hand(top_k=top_k)
        router(RouterInput(X))
        assert router.penalty.item() == pytest.approx(1e-8)
        router.update()
        assert router.penalty.item() == pytest.approx(1e-8 * factor)
        router.update()
        assert router.penalty.item() == pytest.approx(1e-8 * factor), "a step without a forward changes nothing"


def test_lambda_rests_at_the_target():
    router = by_hand()
    router(RouterInput(X[:, 1:3]))  # 1 of 6
    router(RouterInput(X[:, :1]))  # 3 of 9 in all
    router.update()
    assert router.penalty.item() == pytest.approx(1e-8)


def test_only_training_is_counted():
    router = by_hand()
    with torch.no_grad():
        router(RouterInput(X))
    router.eval()(RouterInput(X))
    router.train().cost(2, 3)
    assert not router.used.any()
    router(RouterInput(X, mask=torch.tensor([[True, False, True, True]])))
    assert router.used.tolist() == [4, 9]


def test_lambda_can_always_come_back():
    router = by_hand(penalty_start=1e-30, top_k=2)
    for _ in range(20):
        router(RouterInput(X))
        router.update()
    assert router.penalty.item() == pytest.approx(1e-30)


def test_layers_share_one_lambda():
    """Together they use 6 of 12: less than 2 of 3, although the first alone uses all."""
    first, second = by_hand(top_k=2), by_hand(top_k=2)
    with torch.no_grad():
        first.weight.copy_(torch.ones(3, 1))
        second.weight.copy_(-torch.ones(3, 1))
    for router in (first, second):
        router(RouterInput(torch.ones(1, 2, 1)))
    type(first).update_layers([first, second])
    for router in (first, second):
        assert router.penalty.item() == pytest.approx(1e-8 / 1.2)
        assert router.layers.item() == 2
        assert not router.used.any()


def test_an_arm_moves_lambda_once_for_all_layers():
    backbone = {"name": "mlp", "d_model": 8, "depth": 2, "hidden": 16}
    task = Task("toy", "classification", InputSpec("table", (5,)), 3)
    arm = make_arm(ArmSpec("relu", backbone, {"count": 4}, {}), task, 0)
    first, second = (layer.router for layer in arm.mixtures)
    assert all(mine is theirs for mine, theirs in zip(arm.counts(), (first.used, second.used), strict=True))
    arm.loss(Batch(torch.randn(16, 5), torch.zeros(16, dtype=torch.int64)), torch.arange(16)).total.backward()
    made, possible = (first.used + second.used).tolist()
    assert possible == 2 * 16 * 4
    arm.update()
    assert first.penalty.item() == second.penalty.item() == pytest.approx(1e-8 * (1.2 if made / possible > 1 / 4 else 1 / 1.2))
    assert first.layers.item() == 2


def test_training_reaches_the_target():
    """A slow lambda for so small a model. Against a task that wants open gates at 1, the share of experts used settles around 2 / 8."""
    torch.manual_seed(0)
    router = build_router("relu", d_model=8, num_experts=8, top_k=2, penalty_start=0.1, penalty_growth=1.02)
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    shares = []
    for _ in range(300):
        # Tokens with a common part: of tokens around 0, any direction has half on its side.
        routing = router(RouterInput(torch.randn(4, 32, 8) + 1))
        gates = routing.plan.weight
        loss = (gates - 1).square().sum() / 128 + routing.losses["l1"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(gates.numel() / (4 * 32 * 8))
        router.update()
    assert shares[0] > 0.4
    assert sum(shares[-100:]) / 100 == pytest.approx(0.25, abs=0.05)


def test_wrong_options():
    for options, message in (
        ({"top_k": 4}, r"top_k is 4; it must be between 1 and the number of experts \(3\)"),
        ({"penalty_start": 0.0}, "penalty_start is 0.0; it must be between"),
        ({"penalty_growth": 1.0}, "penalty_growth is 1.0; it must be above 1"),
    ):
        with pytest.raises(ValueError, match=message):
            build_router("relu", d_model=1, num_experts=3, **options)
