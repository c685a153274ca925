"""Mixture of depths, the router: who is chosen in training and in evaluation, and what teaches it."""

import math

import pytest
import torch
from torch.nn import functional as F

from routelab.core.errors import UsageError
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.mixture_of_depths import choice_loss, take_all
from routelab.routers.plans import PerExpert, share_TE


def router_of(**options):
    torch.manual_seed(0)
    return build_router("mixture_of_depths", d_model=2, num_experts=1, **options)


X = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [0.5, 0.0]]])
"""With the weight (1, 0), the logits are the first column."""


def with_weight(router):
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0]]))
    return router


def test_training_takes_the_best_of_each_sequence():
    """ceil(0.5 * 5) = 3 of the logits 1, 3, -1, 2, 0.5, best first, weighted by the logit itself, as eq. 1 has it."""
    plan = with_weight(router_of(capacity=0.5))(RouterInput(X)).plan
    assert plan.position.tolist() == [[[1, 3, 0]]]
    assert plan.weight.tolist() == [[[3.0, 2.0, 1.0]]]
    plan = with_weight(router_of(capacity=0.5, weight="sigmoid"))(RouterInput(X)).plan
    torch.testing.assert_close(plan.weight, torch.tensor([[[3.0, 2.0, 1.0]]]).sigmoid())


def test_the_best_are_told_apart_where_their_sigmoids_are_not():
    """In float32 the sigmoid of 20 is 1 already."""
    x = X * 20
    assert x[..., 0].sigmoid()[0, :2].tolist() == [1.0, 1.0]
    plan = with_weight(router_of(capacity=0.2, weight="sigmoid"))(RouterInput(x)).plan
    assert plan.position.tolist() == [[[1]]]
    masked = with_weight(router_of(capacity=0.3, weight="sigmoid"))(
        RouterInput(x, mask=torch.tensor([[True, False, True, True, False]]))
    )
    assert masked.plan.position[masked.plan.keep].tolist() == [3]


def test_the_default_capacity_is_an_eighth():
    router = router_of()
    assert router(RouterInput(torch.randn(2, 64, 2))).plan.position.shape == (2, 1, 8)
    assert router.nominal_rows(3, 64) == 24
    assert router.nominal_rows(3, 65) == 27


def test_padding_is_neither_chosen_nor_counted():
    """Of 3 real tokens, ceil(0.5 * 3) = 2, and a negative logit is still above padding's."""
    mask = torch.tensor([[True, False, True, False, True]])
    plan = with_weight(router_of(capacity=0.5))(RouterInput(X, mask=mask)).plan
    assert plan.position[plan.keep].tolist() == [0, 4]
    few = torch.tensor([[False, False, True, False, False]])
    plan = with_weight(router_of(capacity=0.5))(RouterInput(X, mask=few)).plan
    assert plan.position[plan.keep].tolist() == [2]


def test_evaluation_takes_what_its_own_logits_say():
    """Logits 1, 3, -1, 2, 0.5: all above 0, in order, whatever the capacity; and with a mask the real ones among them."""
    router = with_weight(router_of(capacity=0.2)).eval()
    plan = router(RouterInput(X)).plan
    assert plan.position[plan.keep].tolist() == [0, 1, 3, 4]
    assert plan.weight[plan.keep].tolist() == [1.0, 3.0, 2.0, 0.5]
    plan = router(RouterInput(X, mask=torch.tensor([[True, False, True, True, True]]))).plan
    assert plan.position[plan.keep].tolist() == [0, 3, 4]
    both = router(RouterInput(torch.cat([X, -X]))).plan
    assert both.keep.tolist() == [[[True] * 4], [[True] + [False] * 3]]
    assert both.position[1, 0, 0] == 2


def test_evaluation_without_a_predictor_takes_the_best():
    plan = with_weight(router_of(capacity=0.5, predictor=None)).eval()(RouterInput(X)).plan
    assert plan.position.tolist() == [[[1, 3, 0]]]


def test_nobody_chosen_leaves_one_empty_place():
    plan = take_all(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.bool))
    assert plan.position.shape == (2, 1, 1)
    assert not plan.keep.any()


def test_choice_loss_by_hand():
    """Two tokens, the first chosen, logits 0 and ln 3: -ln 1/2 and -ln 1/4."""
    logits = torch.tensor([[[0.0], [math.log(3.0)]]])
    plan = PerExpert(torch.tensor([[[0]]]), torch.ones(1, 1, 1), 1)
    assert choice_loss(logits, plan).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert choice_loss(logits, plan, torch.tensor([[True, False]])).item() == pytest.approx(math.log(2))
    assert choice_loss(logits, plan, torch.tensor([[False, False]])).item() == 0


def test_each_way_of_prediction_teaches_what_it_says():
    """The router's own logits with "router"; only the network beside it with "mlp", and nothing before either."""
    x = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    own = router_of(capacity=0.5)
    own(RouterInput(x)).losses["predictor"].backward()
    assert own.weight.grad.abs().min() > 0
    assert x.grad.abs().max() > 0
    x.grad = None
    beside = router_of(capacity=0.5, predictor="mlp")
    beside(RouterInput(x)).losses["predictor"].backward()
    assert x.grad is None
    assert beside.weight.grad is None
    for name in ("predictor_up", "predictor_down", "predictor_bias"):
        assert getattr(beside, name).grad.abs().max() > 0, name
    assert not router_of(predictor=None)(RouterInput(x)).losses


@pytest.mark.parametrize("predictor", ["router", "mlp"])
def test_the_predictor_learns_the_choice(predictor):
    """On tokens of one distribution the top half of 64 is nearly a threshold: it should be found."""
    generator = torch.Generator().manual_seed(0)
    router = router_of(capacity=0.25, predictor=predictor)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, -1.0]]))
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    drawn = [torch.randn(16, 64, 2, generator=generator) + torch.tensor([-1.0, 0.0]) for _ in range(301)]
    for x in drawn[:-1]:
        optimizer.zero_grad()
        router(RouterInput(x)).losses["predictor"].backward()
        optimizer.step()
    x = drawn[-1]
    best = share_TE(router(RouterInput(x)).plan, 16, 64)
    predicted = share_TE(router.eval()(RouterInput(x)).plan, 16, 64, kept=True)
    assert (best == predicted).float().mean() > 0.9


def test_experts_take_a_share_each():
    """In a plain layer of several experts each takes the whole capacity, by a logit of its own."""
    router = build_router("mixture_of_depths", d_model=4, num_experts=3, capacity=0.5)
    x = torch.randn(2, 6, 4)
    plan = router(RouterInput(x)).plan
    assert plan.position.shape == (2, 3, 3)
    assert torch.equal(plan.position, F.linear(x, router.weight).transpose(1, 2).topk(3).indices)


@pytest.mark.parametrize("predictor", ["router", "mlp"])
def test_evaluation_sees_no_later_token_and_training_does(predictor):
    router = build_router("mixture_of_depths", d_model=4, num_experts=1, capacity=0.5, predictor=predictor)
    assert (router.causal, router.causal_predictor, router.batch_coupled) == (False, True, False)
    x = torch.randn(20, 8, 4, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 5:] = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(1))

    def earlier(given):
        return share_TE(router(RouterInput(given)).plan, 20, 8, kept=True).view(20, 8)[:, :5]

    assert not torch.equal(earlier(x), earlier(other))
    router.eval()
    if predictor == "mlp":
        with torch.no_grad():
            router.predictor_up.normal_()
            router.predictor_down.normal_()
    assert 0 < earlier(x).mean() < 1
    assert torch.equal(earlier(x), earlier(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0.0}, "capacity is 0.0; it must be above 0 and at most 1"),
        ({"capacity": 1.5}, "capacity is 1.5"),
        ({"weight": "tanh"}, "weight is 'tanh'"),
        ({"predictor": "oracle"}, "predictor is 'oracle'; it must be 'router', 'mlp' or null"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        router_of(**options)
