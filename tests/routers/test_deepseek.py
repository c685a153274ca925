"""DeepSeek-V3: the bias chooses and never weighs; it follows the load of training, and nothing else."""

import pytest
import torch

from routelab.core.errors import UsageError
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.deepseek import within_groups

# sigmoid of these is 0.8, 0.6, 0.5, 0.2
LOGITS = [1.3862944, 0.4054651, 0.0, -1.3862944]


def router_of(logits=LOGITS, **options):
    """One feature: a token of 1 has these logits."""
    router = build_router("deepseek", d_model=1, num_experts=len(logits), **options)
    with torch.no_grad():
        router.weight.copy_(torch.tensor(logits).unsqueeze(1))
    return router


def tokens(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_weights_by_hand():
    """Scores .8 and .6: 2.5 * .8 / 1.4 and 2.5 * .6 / 1.4."""
    plan = router_of()(RouterInput(tokens(1))).plan
    assert plan.expert.tolist() == [[0, 1]]
    assert plan.weight[0].tolist() == pytest.approx([2.5 * 0.8 / 1.4, 2.5 * 0.6 / 1.4])


def test_bias_chooses_and_does_not_weigh():
    """With b = (-.5, 0, 0, .5) the order is 3 (.7), 1 (.6), 2, 0; weights are of .2 and .6."""
    router = router_of(scale=1.0)
    router.bias.copy_(torch.tensor([-0.5, 0.0, 0.0, 0.5]))
    plan = router(RouterInput(tokens(1))).plan
    assert plan.expert.tolist() == [[3, 1]]
    assert plan.weight[0].tolist() == pytest.approx([0.25, 0.75])
    plan.weight[0, 0].backward()
    assert not router.bias.requires_grad
    assert router.weight.grad.abs().max() > 1e-3


def test_groups_by_hand():
    """Groups of two sum to .95, 1.0, .9, .7: with one group open only 2 and 3 are left, with two also 0 and 1."""
    score = torch.tensor([[0.9, 0.05, 0.5, 0.5, 0.45, 0.45, 0.6, 0.1]])
    one, two = (within_groups(score, 4, best)[0].isfinite().nonzero().flatten().tolist() for best in (1, 2))
    assert one == [2, 3]
    assert two == [0, 1, 2, 3]


def test_a_group_counts_its_best_two_only():
    """Sums of all: 1.2 and 1.3; of the best two: 1.2 and .9."""
    score = torch.tensor([[0.6, 0.6, 0.0, 0.45, 0.45, 0.4]])
    assert within_groups(score, 2, 1)[0].isfinite().tolist() == [True] * 3 + [False] * 3


def test_update_by_hand():
    """Three tokens choose 0 and 1: loads 3, 3, 0, 0 around a mean of 1.5."""
    router = router_of(bias_speed=0.01)
    router(RouterInput(tokens(1, 1, 1)))
    assert router.load.tolist() == [3, 3, 0, 0]
    router.update()
    assert router.bias.tolist() == pytest.approx([-0.01, -0.01, 0.01, 0.01])
    assert not router.load.any()
    router.update()
    assert router.bias.tolist() == pytest.approx([-0.01, -0.01, 0.01, 0.01]), "no tokens, no change"


def test_equal_loads_leave_the_bias():
    router = router_of()
    router(RouterInput(tokens(1, -1)))  # -1 turns the order round: 3 and 2
    assert router.load.tolist() == [1, 1, 1, 1]
    router.update()
    assert not router.bias.any()


def test_only_training_with_gradients_and_real_tokens_count():
    router = router_of()
    router.eval()(RouterInput(tokens(1, 1)))
    with torch.no_grad():
        router.train()(RouterInput(tokens(1, 1)))
    router.cost(2, 3)
    router.nominal_rows(2, 3)
    assert not router.load.any()
    for _ in range(2):  # two micro-batches of one step
        router(RouterInput(tokens(1, 1, -1), mask=torch.tensor([[True, False, True]])))
    assert router.load.tolist() == [2, 2, 2, 2]


def test_state_is_float32_and_saved():
    router = router_of()
    assert {name: value.dtype for name, value in router.named_buffers()} == {"bias": torch.float32, "load": torch.float32}
    assert {"bias", "load"} <= set(router.state_dict())
    assert list(router.counts) == ["load"]


def test_the_bias_evens_out_the_load(data):
    """Tokens with a common part want the same experts; a hundred updates later they are shared out."""
    router = build_router("deepseek", d_model=8, num_experts=8, bias_speed=0.02)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        router.weight.normal_(generator=generator)
    x = data(8, 32)[0] + 1
    violation = []
    for _ in range(100):
        router(RouterInput(x))
        violation.append((router.load.max() / router.load.mean() - 1).item())
        router.update()
    assert violation[0] > 1
    assert violation[-1] < 0.5 * violation[0]


def test_balance_loss_by_hand():
    """One token of scores .8, .6, .5, .2 (sum 2.1): 4 * (.5 * .8 + .5 * .6) / 2.1 = 4/3, whatever the bias chooses."""
    router = router_of()
    assert router(RouterInput(tokens(1))).losses["balance"].item() == pytest.approx(4 * 0.7 / 2.1)
    router.bias.copy_(torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    assert router(RouterInput(tokens(1))).losses["balance"].item() == pytest.approx(4 * 0.7 / 2.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_group": 3}, "n_group is 3; it must divide the 4 experts"),
        ({"n_group": 4}, "into groups of at least 2"),
        ({"n_group": 2, "topk_group": 3}, r"topk_group is 3; it must be between 1 and n_group \(2\)"),
        ({"n_group": 2, "top_k": 3}, r"top_k is 3; it must be between 1 and the experts in 1 of 2 groups \(2\)"),
        ({"top_k": 1}, "gives every token the same weight"),
        ({"scale": 0.0}, "scale is 0.0; it must be above 0"),
        ({"scale": float("inf")}, "scale is inf; it must be above 0 and finite"),
        ({"bias_speed": -1.0}, "bias_speed is -1.0; it must be at least 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UsageError, match=message):
        router_of(**options)
