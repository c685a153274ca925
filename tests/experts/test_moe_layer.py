"""The layer between router and experts: capacity, padding, shared experts, precision, and what it reports."""

import pytest
import torch

from routelab.core.initialisation import initialise
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Router, Routing
from routelab.routers.build import build_router
from routelab.routers.plans import Blend, Ragged, Slots, TopK

D, E = 8, 4


def make_layer(name="topk", shared=None, seed=0, options=None, **layer):
    router = build_router(name, d_model=D, num_experts=E, **(options or {}))
    made = MixtureLayer(router, ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12), shared, **layer)
    initialise(made, seed)
    with torch.no_grad():
        if name != "soft":
            for parameter in router.parameters():
                parameter.mul_(50)
    return made


def tokens(groups=2, positions=8, seed=0):
    return torch.randn(groups, positions, D, generator=torch.Generator().manual_seed(seed))


class Fixed(Router):
    """Returns what it was given, right or wrong."""

    def __init__(self, answer):
        super().__init__(D, E)
        self.answer = answer

    def forward(self, inputs):
        return self.answer


def layer_of(answer, **options):
    return MixtureLayer(Fixed(answer), ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12), **options)


# --- capacity ---


@pytest.mark.parametrize(("group", "room"), [("batch", 10), ("sequence", 5)])
def test_capacity_in_training(group, room):
    """ceil(1.25 * 2 * 16 / 4) = 10 per batch, ceil(1.25 * 2 * 8 / 4) = 5 per sequence; all choose experts 0 and 1."""
    plan = TopK(torch.tensor([[0, 1]] * 16), torch.ones(16, 2), E)
    layer = layer_of(Routing(plan), capacity_factor=1.25, capacity_group=group)
    _, routing = layer(tokens())
    keep = routing.plan.keep.view(2, 8, 2)
    if group == "batch":
        assert keep.sum((0, 1)).tolist() == [room, room]
    else:
        assert keep.sum(1).tolist() == [[room, room]] * 2
    assert (routing.work.assigned, routing.work.kept) == (32, 20)
    assert routing.work.executed == 20


RAGGED = [  # token, its experts; 2 groups of 4 tokens, of which 3 and 2 are real
    (0, (0, 1, 2)), (1, (0,)), (2, (0, 1)), (3, (0, 1, 2, 3)),
    (4, (0,)), (5, (0,)), (6, (0, 1, 2, 3)), (7, (0, 1, 2, 3)),
]  # fmt: skip
REAL = torch.tensor([[True, True, True, False], [True, True, False, False]])


@pytest.mark.parametrize(
    ("group", "masked", "factor", "kept"),
    [
        # Real choices: 6 + 2 = 8 (k = 8/5 of n = 5 tokens); ceil(8 / 4) = 2: expert 0 keeps tokens 0 and 1, expert 1 0 and 2.
        ("batch", True, 1.0, {0: [0, 1], 1: [0, 2], 2: [0], 3: []}),
        # By sequence: ceil(6 / 4) = 2 and ceil(2 / 4) = 1. With the padding's choices it would be 3 and 3.
        ("sequence", True, 1.0, {0: [0, 1, 4], 1: [0, 2], 2: [0], 3: []}),
        # ceil(0.5 * 6 / 4) = 1 and ceil(0.5 * 2 / 4) = 1.
        ("sequence", True, 0.5, {0: [0, 4], 1: [0], 2: [0], 3: []}),
        # All real: 10 and 10 choices, ceil(10 / 4) = 3 in each group.
        ("sequence", False, 1.0, {0: [0, 1, 2, 4, 5, 6], 1: [0, 2, 3, 6, 7], 2: [0, 3, 6, 7], 3: [3, 6, 7]}),
        # All real: 20 choices, ceil(20 / 4) = 5.
        ("batch", False, 1.0, {0: [0, 1, 2, 3, 4], 1: [0, 2, 3, 6, 7], 2: [0, 3, 6, 7], 3: [3, 6, 7]}),
    ],
)
def test_capacity_of_a_ragged_plan_counts_real_tokens_only(group, masked, factor, kept):
    pairs = [(token, expert) for token, experts in RAGGED for expert in experts]
    token, expert = (torch.tensor(part) for part in zip(*pairs, strict=True))
    layer = layer_of(Routing(Ragged(token, expert, torch.ones(20), E)), capacity_factor=factor, capacity_group=group)
    _, routing = layer(tokens(2, 4), mask=REAL if masked else None)
    found = {e: routing.plan.token[routing.plan.keep & (expert == e)].tolist() for e in range(E)}
    assert found == kept
    assert routing.work.assigned == (8 if masked else 20)
    assert routing.work.kept == sum(map(len, kept.values()))


def test_capacity_of_a_ragged_plan_is_declared_not_causal():
    """The room of an expert grows with the choices of later tokens, whoever is served first."""
    plan = Ragged(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.ones(3), E)
    assert layer_of(Routing(plan)).causal
    assert not layer_of(Routing(plan), capacity_factor=1.0, capacity_group="sequence").causal
    assert not layer_of(Routing(plan), capacity_factor=1.0, capacity_group="sequence").batch_coupled
    assert layer_of(Routing(TopK(torch.tensor([[0], [1]]), torch.ones(2, 1), E)), capacity_factor=1.0).causal


def test_capacity_counts_real_tokens():
    plan = TopK(torch.zeros(16, 1, dtype=torch.int64), torch.ones(16, 1), E)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 4:] = False
    _, routing = layer_of(Routing(plan), capacity_factor=1.0)(tokens(), mask=mask)
    assert (routing.work.assigned, routing.work.kept) == (8, 2)  # 8 real tokens over 4 experts
    _, routing = layer_of(Routing(plan), capacity_factor=1.0)(tokens())
    assert (routing.work.assigned, routing.work.kept) == (16, 4)


def test_evaluation_is_dropless_unless_asked():
    """Metrics must not depend on the batch size."""
    x = tokens()
    dropping = make_layer("switch", capacity_factor=0.5, eval_capacity_factor=0.5).eval()
    plain = make_layer("switch", capacity_factor=0.5).eval()
    assert dropping(x)[1].work.kept < 16
    assert plain(x)[1].work.kept == 16
    assert plain.train()(x)[1].work.kept < 16
    whole, single = plain.eval()(x)[0], torch.cat([plain(x[:1])[0], plain(x[1:])[0]])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-4)


def test_default_capacity_is_the_routers():
    assert make_layer("switch").capacity_factor == 1.25
    assert make_layer("top2").capacity_factor == 2.0
    assert make_layer("top2").priority == "choice"
    assert make_layer("topk").capacity_factor is None
    assert make_layer("switch", capacity_factor=None).capacity_factor is None


def test_dropped_tokens_come_out_as_zero():
    """The residual is added outside: nothing else may carry a dropped token."""
    layer = make_layer("switch", capacity_factor=0.5, options={"jitter": 0.0})
    out, routing = layer(tokens())
    gone = ~routing.plan.keep.view(2, 8)
    assert gone.any()
    assert out[gone].abs().max() == 0
    assert (out[~gone].abs().amax(-1) > 0).all()


def test_priority_uses_probabilities_of_the_router():
    """Renormalised weights of top-1 are all 1 here; confidence must come from the router's probabilities."""
    probs = torch.full((8, E), 0.1)
    probs[:, 0] = torch.tensor([0.3, 0.9, 0.4, 0.8, 0.5, 0.7, 0.6, 0.2])
    plan = TopK(torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1), E)
    layer = layer_of(Routing(plan, probs=probs), capacity_factor=1.5, priority="probability")
    keep = layer(tokens(1, 8))[1].plan.keep.flatten()
    assert keep.nonzero().flatten().tolist() == [1, 3, 5]


# --- shape, padding, shared ---


@pytest.mark.parametrize("name", ["topk", "expert_choice", "soft"])
def test_flat_input_is_one_group(name):
    layer, x = make_layer(name).eval(), tokens(1, 8)
    mask = torch.tensor([True] * 6 + [False] * 2)
    out, _ = layer(x[0], mask=mask)
    assert out.shape == (8, D)
    assert torch.equal(out, layer(x, mask=mask.unsqueeze(0))[0][0])


def test_shared_expert_sees_every_token_but_padding():
    shared = FeedForward("gelu", D, 12)
    with_shared, without = make_layer(shared=shared), make_layer()
    initialise(shared, 7)
    without.load_state_dict({k: v for k, v in with_shared.state_dict().items() if not k.startswith("shared.")})
    x = tokens()
    torch.testing.assert_close(with_shared(x)[0], without(x)[0] + shared(x), atol=1e-6, rtol=1e-5)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 3:] = False
    out = with_shared(x, mask=mask)[0]
    assert out[~mask].abs().max() == 0
    torch.testing.assert_close(out[mask], with_shared(x)[0][mask], atol=1e-5, rtol=1e-4)


def test_shared_expert_is_fixed_cost():
    shared = FeedForward("gelu", D, 12)
    difference = make_layer(shared=shared).fixed_cost(2, 8).training - make_layer().fixed_cost(2, 8).training
    assert difference == 3 * 2 * 16 * 2 * D * 12


# --- precision ---


def test_router_stays_in_float32():
    """bf16 logits tie often, and a tie changes the choice."""
    seen = {}

    class Watch(Router):
        def forward(self, inputs):
            seen["x"] = inputs.x.dtype
            seen["product"] = (inputs.x.flatten(0, 1) @ torch.ones(D, E)).dtype
            return Routing(Blend(torch.ones(inputs.x_TD.shape[0], E), E))

    layer = MixtureLayer(Watch(D, E), ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = layer(tokens().bfloat16())
    assert seen == {"x": torch.float32, "product": torch.float32}
    assert out.dtype == torch.bfloat16


def test_a_layer_turned_to_bfloat16_leaves_its_router_in_float32():
    """Whole models are turned at once. A bias in bfloat16 would stand still near 0.5, where its steps of 0.001 are rounded off."""
    layer, x = make_layer("deepseek", options={"top_k": 2}), tokens().bfloat16()
    with torch.no_grad():
        layer.router.bias.fill_(0.5)
    weight, choices = layer.router.weight.detach().clone(), layer.eval()(x)[1].plan.expert
    layer.train().bfloat16()
    assert {value.dtype for value in layer.experts.parameters()} == {torch.bfloat16}
    assert torch.equal(layer.router.weight, weight), "not even rounded on the way"
    out, routing = layer(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(routing.plan.expert, choices)
    out.square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 0
    layer.router.update()
    assert torch.allclose((layer.router.bias - 0.5).abs(), torch.tensor(1e-3), atol=1e-6)


@pytest.mark.parametrize("name", ["switch", "top2", "topk", "expert_choice", "soft", "hash"])
def test_autocast_changes_little(name):
    layer, x = make_layer(name).eval(), tokens()
    full = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, routing = layer(x)
    torch.testing.assert_close(low.float(), full, atol=0.05, rtol=0.05)
    assert not torch.equal(low.float(), full), "the experts must really run in bfloat16"
    assert routing.probs is None or routing.probs.dtype == torch.float32


# --- what it reports ---


def test_telemetry_is_detached_and_losses_are_not():
    _, routing = make_layer("switch")(tokens())
    assert not routing.logits.requires_grad
    assert not routing.probs.requires_grad
    assert routing.losses["balance"].requires_grad
    assert routing.plan.weight.requires_grad


def test_kernels_of_the_layer_agree():
    for name in ("switch", "topk", "expert_choice", "soft"):
        outs = []
        for kernel in ("auto", "grouped", "batched", "loop"):
            layer = make_layer(name, kernel=kernel, options={"jitter": 0.0} if name == "switch" else None)
            outs.append(layer(tokens())[0])
        for out in outs[1:]:
            torch.testing.assert_close(out, outs[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["topk", "soft", "expert_choice", "hash"])
def test_nominal_cost_by_hand(name):
    """2 x 8 tokens. Rows x one expert, the router with its balance loss, and for soft the products with its slots."""
    layer = make_layer(name, options={"slots_per_expert": 2} if name == "soft" else None)
    rows, router = {
        "topk": (2 * 16, 3 * 2 * 16 * D * E + 2 * 2 * 16 * E),
        "soft": (2 * E * 2, 3 * 2 * 16 * D * E * 2 + 3 * 2 * (2 * 16 * E * 2 * D)),
        "expert_choice": (2 * 16, 3 * 2 * 16 * D * E),
        "hash": (16, 2 * 16 * D * 12),
    }[name]
    assert layer.nominal_cost(2, 8).training == router + rows * 3 * 2 * 2 * D * 12


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity_factor": 0.0}, "capacity_factor is 0.0; it must be above 0"),
        ({"capacity_factor": float("nan")}, "capacity_factor is nan"),
        ({"capacity_factor": float("inf")}, "capacity_factor is inf; it must be above 0 and finite, or null for dropless"),
        ({"eval_capacity_factor": -1}, "eval_capacity_factor is -1"),
        ({"capacity_group": "token"}, "capacity_group is 'token'; it must be one of sequence, batch"),
        ({"priority": "luck"}, "priority is 'luck'"),
        ({"kernel": "fast"}, "kernel is 'fast'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_layer(**options)


def test_router_and_bank_must_fit():
    with pytest.raises(ValueError, match="they must be equal"):
        MixtureLayer(build_router("topk", d_model=D, num_experts=3), ExpertBank(num_experts=E, d_model=D, d_hidden=4))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(1), "router Fixed broke the contract: forward returned Tensor; it must return a Routing"),
        (
            Routing(TopK(torch.zeros(5, 1).long(), torch.ones(5, 1), E)),
            "router Fixed broke the contract: TopK.expert has shape",
        ),
        (Routing(TopK(torch.zeros(16, 1).long(), torch.ones(16, 1), 3)), "the plan names 3 experts; there are 4"),
        (Routing(Slots(torch.ones(2, 8, E, 1), torch.ones(2, 8, E, 1), E, weight_on="input")), "broke the contract"),
        (Routing("plan"), "got str"),
    ],
)
def test_a_broken_router_is_named(answer, message):
    with pytest.raises(ValueError, match=message):
        layer_of(answer)(tokens())
