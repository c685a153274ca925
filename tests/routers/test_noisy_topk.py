"""Noisy top-k: noise in training only, and a start where the noise alone chooses."""

import pytest
import torch

from routelab.core.errors import UsageError
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router


def router_of(weight=None, noise_weight=None, **options):
    """Two features; four experts unless a weight (E, 2) says otherwise."""
    experts = 4 if weight is None else len(weight)
    router = build_router("noisy_topk", d_model=2, num_experts=experts, **options)
    with torch.no_grad():
        for parameter, value in ((router.weight, weight), (router.noise_weight, noise_weight)):
            if value is not None:
                parameter.copy_(torch.tensor(value))
    return router


def test_both_weights_start_at_zero(make_router):
    router = build_router("noisy_topk", d_model=8, num_experts=4)
    assert [name for name, _ in router.named_parameters()] == ["weight", "noise_weight"]
    assert all(not parameter.any() for parameter in router.parameters())


def test_at_the_start_every_expert_is_chosen_alike():
    """Equal logits: the noise alone chooses 2 of 4, each half the time."""
    router = router_of()
    torch.manual_seed(0)
    routing = router(RouterInput(torch.ones(1, 4000, 2)))
    share = torch.bincount(routing.plan.expert.flatten(), minlength=4) / 4000
    assert torch.allclose(share, torch.full((4,), 0.5), atol=0.04)
    assert routing.losses["importance"] < 0.01
    assert routing.losses["load"] < 0.01


def test_evaluation_by_hand():
    """Logits (3, 1, 2): experts 0 and 2 with e^3 / (e^3 + e^2) and the rest."""
    router = router_of([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[5.0, 5.0]] * 3).eval()
    plan = router(RouterInput(torch.tensor([[[1.0, 0.0]]]))).plan
    assert plan.expert.tolist() == [[0, 2]]
    assert plan.weight[0].tolist() == pytest.approx([0.7310586, 0.2689414])


def test_noise_has_the_deviation_of_the_softplus():
    """At x = (0, 1) the two experts' deviations are softplus(0) = 0.6931 and softplus(2) = 2.1269; the gate's difference
    of noisy logits then has their squares' sum as its variance."""
    router = router_of([[0.0, 0.0], [0.0, 0.0], [0.0, -1e4]], [[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    x = torch.tensor([0.0, 1.0]).expand(1, 20_000, 2)
    torch.manual_seed(0)
    plan = router(RouterInput(x)).plan
    gate = plan.weight.gather(1, (plan.expert == 0).int().argmax(1, keepdim=True))
    difference = torch.logit(gate.double())
    assert difference.mean().item() == pytest.approx(0, abs=0.05)
    assert difference.std().item() == pytest.approx((0.6931**2 + 2.1269**2) ** 0.5, rel=0.02)


def test_weights_are_a_softmax_over_the_noisy_logits(data):
    """Not over the clean ones: then the noise's deviation would get no gradient from the output."""
    router = router_of([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    torch.manual_seed(0)
    routing = router(RouterInput(data(1, 20, width=2)[0]))
    clean = routing.logits.gather(1, routing.plan.expert).softmax(-1)
    assert torch.allclose(routing.plan.weight.sum(-1), torch.ones(20))
    assert (routing.plan.weight[:, 0] >= routing.plan.weight[:, 1]).all()
    assert not torch.allclose(routing.plan.weight, clean)
    assert torch.autograd.grad(routing.plan.weight[:, 0].sum(), router.noise_weight)[0].abs().max() > 1e-4


def test_without_noise_training_is_evaluation(data):
    router = router_of([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]], noise=False)
    inputs = RouterInput(data(1, 20, width=2)[0])
    trained, evaluated = router(inputs), router.eval()(inputs)
    assert torch.equal(trained.plan.weight, evaluated.plan.weight)
    assert torch.equal(trained.losses["load"], evaluated.losses["load"])


def test_tiny_deviations_leave_losses_and_gradients_finite(data):
    """softplus(-400) is 0 in float32, and the load loss divides by it."""
    router = router_of([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]], [[-400.0, 0.0]] * 3)
    x = data(1, 20, width=2)[0].abs() + 1
    losses = router(RouterInput(x)).losses
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in router.parameters())


def test_as_many_choices_as_experts_is_an_error():
    with pytest.raises(UsageError, match=r"top_k is 4; it must be at least 1 and below the number of experts \(4\)"):
        router_of(top_k=4)


def test_one_choice_warns():
    with pytest.warns(UserWarning, match="top_k=1 gives every token the weight 1"):
        router_of(top_k=1)
