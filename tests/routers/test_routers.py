"""Every router: what it selects, how it weighs, what its gradient reaches, and what an output may depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from experts.bank import ExpertBank
from experts.initialisation import initialise
from experts.mixture import MixtureLayer
from routers.contract import RouterInput
from routers.hashing import METHODS, balanced_table, cluster_table, dispersed_table, mix
from routers.plans import PerExpert, Ragged, Slots, check_plan, check_values
from routers.registry import build_router

D, E, V = 8, 4, 50

ROUTER_CASES = {
    "switch": ("switch", {}),
    "top2": ("top2", {}),
    "topk": ("topk", {}),
    "topk_raw": ("topk", {"top_k": 1, "renormalize": False}),
    "expert_choice": ("expert_choice", {}),
    "expert_choice_batch": ("expert_choice", {"across": "batch"}),
    "hash": ("hash", {"vocab_size": V}),
    "hash_projection": ("hash", {}),
    "soft": ("soft", {"slots_per_expert": 2}),
}
EVERY_ROUTER = pytest.mark.parametrize("case", ROUTER_CASES)

# The same routers without their noise, so that two calls of different shape can be compared in training.
QUIET = {"switch": {"jitter": 0.0}, "top2": {"second_policy": "all"}}


def make_router(case, d_model=D, num_experts=E, seed=0, **options):
    name, own = ROUTER_CASES[case]
    router = build_router(name, d_model=d_model, num_experts=num_experts, **{**own, **options})
    initialise(router, seed)
    with torch.no_grad():
        for parameter in router.parameters():
            if name != "soft":
                parameter.mul_(50)  # N(0, 1), so that choices differ clearly
    return router


def make_layer(case, *, quiet=False, seed=0, router_options=None, **options):
    own = {**(QUIET.get(case, {}) if quiet else {}), **(router_options or {})}
    router = make_router(case, seed=seed, **own)
    bank = ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12)
    initialise(bank, seed)
    return MixtureLayer(router, bank, **options)


def data(groups, positions, seed=0, width=D):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, positions, width, generator=generator)
    return x, torch.randint(0, V, (groups, positions), generator=generator)


def weight_of(router, value):
    with torch.no_grad():
        router.weight.copy_(value)


# --- gradient ---


@EVERY_ROUTER
@pytest.mark.parametrize("limited", [False, True])
def test_output_gradient_reaches_every_parameter(case, limited):
    """From the output alone: an auxiliary loss would hide a gate that was replaced by ones."""
    layer = make_layer(case, capacity_factor=1.25 if limited else None)
    x, ids = data(3, 8)
    out, _ = layer(x, ids)
    out.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name.startswith("router."):
            rows = parameter.grad.reshape(parameter.shape[0], -1) if parameter.ndim else parameter.grad.reshape(1, 1)
            assert (rows.abs().amax(1) > 1e-7).all(), name


def test_balance_loss_reaches_the_weight():
    for case in ("switch", "top2", "topk"):
        router = make_router(case)
        x, ids = data(3, 8)
        losses = router(RouterInput(x, ids)).losses
        assert set(losses) == set(router.loss_weights) == {"balance"}
        losses["balance"].backward()
        assert router.weight.grad.abs().max() > 1e-6, case


# --- choices and weights ---


def test_switch_weight_is_the_raw_probability():
    router = make_router("switch", jitter=0.0)
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    probs = (x.flatten(0, 1) @ router.weight.t()).softmax(-1)
    assert torch.equal(plan.expert.squeeze(1), probs.argmax(-1))
    assert torch.allclose(plan.weight.squeeze(1), probs.amax(-1))
    assert plan.weight.max() < 1


def test_switch_jitter_touches_the_router_only():
    """Experts see the clean x: with one fixed choice of weight, the output is weight * expert(x)."""
    layer = make_layer("switch", router_options={"jitter": 0.5}, capacity_factor=None)
    x, _ = data(1, 6)
    torch.manual_seed(0)
    out, routing = layer(x)
    probs = (x.flatten(0, 1) @ layer.router.weight.t()).softmax(-1)
    assert not torch.allclose(routing.probs, probs, atol=1e-3)
    for token, expert in enumerate(routing.plan.expert.squeeze(1).tolist()):
        hidden = F.gelu(x[0, token] @ layer.experts.up[expert])
        assert torch.allclose(out[0, token], routing.plan.weight[token] * (hidden @ layer.experts.down[expert]), atol=1e-5)


def test_topk_is_softmax_over_the_selected():
    router = make_router("topk", top_k=3)
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    logits = x.flatten(0, 1) @ router.weight.t()
    top = logits.topk(3, dim=-1)
    assert torch.equal(plan.expert, top.indices)
    assert torch.allclose(plan.weight, top.values.softmax(-1), atol=1e-6)


def test_topk_raw_keeps_probabilities():
    router = make_router("topk", renormalize=False)
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    probs = (x.flatten(0, 1) @ router.weight.t()).softmax(-1)
    assert torch.allclose(plan.weight, probs.gather(1, plan.expert))
    assert (plan.weight.sum(1) < 1).all()


def test_topk_refuses_a_gate_without_gradient():
    with pytest.raises(ValueError, match="no gradient; set renormalize=False"):
        build_router("topk", d_model=D, num_experts=E, top_k=1)
    build_router("topk", d_model=D, num_experts=1, top_k=1)


def test_top2_renormalises_over_the_pair():
    router = make_router("top2").eval()
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    top = (x.flatten(0, 1) @ router.weight.t()).softmax(-1).topk(2, dim=-1)
    assert plan.keep is None
    assert torch.equal(plan.expert, top.indices)
    assert torch.allclose(plan.weight, top.values / top.values.sum(-1, keepdim=True))


def test_top2_balance_counts_first_choices_only():
    """Eight tokens choose 0 first and 1 second: with both counted the loss would be halved towards 1."""
    router = make_router("top2", num_experts=2, d_model=2)
    weight_of(router, torch.tensor([[50.0, 0.0], [0.0, 0.0]]))
    x = torch.ones(1, 8, 2)
    assert router(RouterInput(x)).losses["balance"].item() == pytest.approx(2.0)


def test_top2_second_policy():
    """Random: the second choice lives with probability min(1, 2 g2), never the first; its weight is left as it was."""
    router = make_router("top2", num_experts=2, d_model=2)
    share = 0.1
    weight_of(router, torch.tensor([[torch.logit(torch.tensor(1 - share)).item(), 0.0], [0.0, 0.0]]))
    x = torch.ones(1, 4000, 2)
    torch.manual_seed(0)
    plan = router(RouterInput(x)).plan
    assert plan.keep[:, 0].all()
    assert plan.keep[:, 1].float().mean().item() == pytest.approx(2 * share, abs=0.03)
    assert torch.allclose(plan.weight[:, 1], torch.tensor(share))
    assert router.eval()(RouterInput(x)).plan.keep is None
    always = make_router("top2", num_experts=2, d_model=2, second_policy="all")
    assert always(RouterInput(x)).plan.keep is None


def test_expert_choice_takes_the_best_in_each_group():
    router = make_router("expert_choice", capacity_factor=1.5)
    x, _ = data(3, 5)
    plan = router(RouterInput(x)).plan
    assert isinstance(plan, PerExpert)
    assert plan.position.shape == (3, E, 2)  # ceil(1.5 * 5 / 4)
    probs = (x @ router.weight.t()).softmax(-1)
    for group in range(3):
        for expert in range(E):
            best = probs[group, :, expert].topk(2)
            assert torch.equal(plan.position[group, expert], best.indices)
            assert torch.allclose(plan.weight[group, expert], best.values)


def test_expert_choice_across_the_batch():
    """At each position, each expert takes its best groups; flat token = group * S + position."""
    router = make_router("expert_choice_batch", capacity_factor=1.5)
    x, _ = data(5, 3)
    plan = router(RouterInput(x)).plan
    assert isinstance(plan, Ragged)
    probs = (x @ router.weight.t()).softmax(-1)
    expected = {
        (group * 3 + position, expert)
        for position in range(3)
        for expert in range(E)
        for group in probs[:, position, expert].topk(2).indices.tolist()
    }
    assert set(zip(plan.token.tolist(), plan.expert.tolist(), strict=True)) == expected
    assert torch.allclose(plan.weight, probs.flatten(0, 1)[plan.token, plan.expert])


def test_expert_choice_has_no_losses_and_is_balanced():
    x, _ = data(4, 8)
    for case in ("expert_choice", "expert_choice_batch"):
        layer = make_layer(case)
        _, routing = layer(x)
        assert not routing.losses
        assert routing.work.kept == 4 * 8 * 2


def test_soft_by_hand():
    """Puigcerver's algorithm 1 with einsum, experts and all."""
    layer = make_layer("soft")
    with torch.no_grad():
        layer.router.scale.fill_(3.0)
    x, _ = data(2, 5)
    phi = layer.router.phi.view(D, E, 2)
    logits = 3.0 * torch.einsum("gsd,dep->gsep", x / x.norm(dim=-1, keepdim=True), phi / phi.norm(dim=0, keepdim=True))
    dispatch = logits.exp() / logits.exp().sum(1, keepdim=True)
    combine = logits.exp() / logits.exp().sum((2, 3), keepdim=True)
    slots = torch.einsum("gsd,gsep->gepd", x, dispatch)
    done = torch.einsum("geph,ehd->gepd", F.gelu(torch.einsum("gepd,edh->geph", slots, layer.experts.up)), layer.experts.down)
    expected = torch.einsum("gepd,gsep->gsd", done, combine)
    out, routing = layer(x)
    assert isinstance(routing.plan, Slots)
    assert torch.allclose(routing.plan.dispatch, dispatch, atol=1e-6)
    assert torch.allclose(routing.plan.combine, combine, atol=1e-6)
    assert torch.allclose(out, expected, atol=1e-5)


def test_soft_weights_of_padding_are_zero():
    """In the plan itself, before the layer takes padding out; real tokens share what a slot sees among themselves."""
    x, _ = data(3, 5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True], [False] * 5])
    plan = make_router("soft")(RouterInput(x, mask=mask)).plan
    for weight in (plan.dispatch, plan.combine):
        assert weight[~mask].abs().max() == 0
    assert torch.allclose(plan.dispatch[:2].sum(1), torch.ones(2, E, 2))
    assert torch.allclose(plan.combine.sum((2, 3)), mask.float())


def test_soft_slots_follow_the_positions():
    assert build_router("soft", d_model=D, num_experts=4, positions=16).slots_per_expert == 4
    assert build_router("soft", d_model=D, num_experts=16, positions=4).slots_per_expert == 1
    assert build_router("soft", d_model=D, num_experts=4).slots_per_expert == 1


def test_soft_survives_a_zero_token_and_a_group_of_padding():
    layer = make_layer("soft")
    x, _ = data(2, 4)
    x[0, 1] = 0
    mask = torch.tensor([[True] * 4, [False] * 4])
    out, _ = layer(x.requires_grad_(), mask=mask)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert out[1].abs().max() == 0


# --- hash ---


def hash_router(method, num_experts=E, seed=0, **options):
    router = build_router("hash", d_model=D, num_experts=num_experts, method=method, **options)
    initialise(router, seed)
    return router


def choice(router, x, ids=None):
    return router(RouterInput(x, ids)).plan.expert.view(x.shape[:2])


def test_hash_uses_the_token_not_its_place():
    """A published comparison hashed the position and called it hash routing."""
    router = hash_router("random", vocab_size=V)
    x, ids = data(4, 30)
    expert = choice(router, x, ids)
    moved = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(choice(router, x, ids[:, moved]), expert[:, moved])
    assert torch.equal(choice(router, torch.randn_like(x), ids), expert)
    assert torch.equal(expert, router.table[ids])
    assert (choice(router, x, torch.full_like(ids, 3)) == router.table[3]).all()
    assert len(set(expert.flatten().tolist())) == E


def test_hash_position_ignores_the_token():
    router = hash_router("position")
    x, ids = data(3, 40)
    expert = choice(router, x, ids)
    assert torch.equal(expert, choice(router, torch.randn_like(x), ids.flip(1)))
    assert (expert == expert[0]).all()
    assert len(set(expert[0].tolist())) == E


def test_hash_previous():
    router = hash_router("previous", vocab_size=V)
    x, ids = data(2, 6)
    expert = choice(router, x, ids)
    assert torch.equal(expert[:, 1:], router.table[ids[:, :-1]])
    assert (expert[:, 0] == router.table[0]).all()


def test_hash_bigram():
    """A function of (previous, current) and of both; spread evenly over the experts."""
    router = hash_router("bigram", vocab_size=V)
    x, ids = data(2, 3)
    ids[0], ids[1] = torch.tensor([7, 1, 2]), torch.tensor([9, 1, 2])
    expert = choice(router, x, ids)
    assert expert[0, 2] == expert[1, 2]
    previous, current = torch.arange(V).repeat_interleave(V), torch.arange(V).repeat(V)
    pairs = choice(router, torch.zeros(V * V, 2, D), torch.stack([previous, current], 1))[:, 1].view(V, V)
    assert (pairs != pairs[:1]).any(1)[1:].all(), "the previous token must matter"
    assert (pairs != pairs[:, :1]).any(0)[1:].all(), "the current token must matter"
    share = torch.bincount(pairs.flatten(), minlength=E) / V**2
    assert (share - 1 / E).abs().max() < 0.05


def test_hash_projection_is_a_balanced_function_of_x():
    router = hash_router("projection")
    assert torch.bincount(router.table, minlength=E).tolist() == [1024] * E
    x, _ = data(4, 500)
    expert = choice(router, x)
    assert torch.equal(choice(router, 3 * x), expert), "signs do not see the length of x"
    assert (choice(router, -x) != expert).any()
    share = torch.bincount(expert.flatten(), minlength=E) / expert.numel()
    assert (share - 1 / E).abs().max() < 0.1


def test_hash_tables_come_from_the_seed():
    for method in ("random", "projection", "position"):
        options = {"vocab_size": V} if method == "random" else {}
        same, again, other = (hash_router(method, seed=seed, **options).table for seed in (0, 0, 1))
        assert torch.equal(same, again)
        assert not torch.equal(same, other)


def test_hash_is_weight_one_and_has_nothing_to_learn():
    router = hash_router("random", vocab_size=V)
    x, ids = data(2, 5)
    routing = router(RouterInput(x, ids))
    assert (routing.plan.weight == 1).all()
    assert not list(router.parameters())
    assert not routing.losses


def test_balanced_table_packs_by_frequency():
    """Most frequent first, each to the emptiest: 8->0, 7->1, 6->2, 5->2 is wrong, 5 goes to the least load."""
    assert balanced_table(torch.tensor([5, 8, 6, 7, 1]), 3).tolist() == [2, 0, 2, 1, 1]
    counts = (1000 / torch.arange(1, 201)).long()  # Zipf
    router = hash_router("balanced", vocab_size=200)
    router.calibrate(token_counts=counts)
    load = torch.zeros(E).index_add_(0, router.table, counts.float())
    assert load.max() / load.mean() < 1.02
    assert torch.bincount(balanced_table(torch.zeros(12), 4)).tolist() == [3, 3, 3, 3], "unseen ids spread too"


def test_cluster_and_dispersed_tables():
    centre = torch.eye(3, D).repeat_interleave(6, 0) * 10
    embeddings = centre + 0.1 * torch.randn(18, D, generator=torch.Generator().manual_seed(0))
    cluster = cluster_table(embeddings, 3).view(3, 6)
    assert (cluster == cluster[:, :1]).all()
    assert len(set(cluster[:, 0].tolist())) == 3
    spread = dispersed_table(cluster.flatten(), 3).view(3, 6)
    for row in spread:
        assert torch.bincount(row, minlength=3).tolist() == [2, 2, 2]


def test_mix_is_fixed_and_not_negative():
    """Large vocabularies square to more than 31 bits; a negative hash would index from the end of the table."""
    value = torch.arange(0, 128_000**2, 12_345_678)
    assert (mix(value) >= 0).all()
    assert torch.equal(mix(value), mix(value.clone()))
    assert mix(torch.arange(1000)).unique().numel() > 990


def test_hash_errors():
    with pytest.raises(ValueError, match="method is 'md5'"):
        hash_router("md5", vocab_size=V)
    for method in set(METHODS) - {"projection", "position"}:
        with pytest.raises(ValueError, match=f"method '{method}' needs token ids"):
            hash_router(method)
    x, _ = data(1, 3)
    with pytest.raises(ValueError, match="hash method 'random' needs token_ids"):
        hash_router("random", vocab_size=V)(RouterInput(x))
    with pytest.raises(ValueError, match="needs the training frequencies"):
        hash_router("balanced", vocab_size=V).calibrate()
    for method in ("clusters", "dispersed"):
        with pytest.raises(ValueError, match="needs token embeddings"):
            hash_router(method, vocab_size=V).calibrate()


# --- modes ---


@EVERY_ROUTER
def test_evaluation_is_deterministic(case):
    layer = make_layer(case).eval()
    x, ids = data(3, 8)
    state = torch.random.get_rng_state()
    first, _ = layer(x, ids)
    assert torch.equal(torch.random.get_rng_state(), state), "evaluation must draw no random number"
    torch.manual_seed(99)
    second, routing = layer(x, ids)
    assert torch.equal(first, second)
    assert routing.work.kept == routing.work.assigned


@pytest.mark.parametrize("case", ["switch", "top2"])
def test_training_noise(case):
    layer = make_layer(case, router_options={"jitter": 0.3} if case == "switch" else None)
    x, ids = data(3, 8)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(layer(x, ids)[0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


@EVERY_ROUTER
def test_cost_leaves_no_trace(case):
    """Counting runs the router: it must not advance the random state, the gradients or the mode."""
    router = make_router(case)
    for parameter in router.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    state = torch.random.get_rng_state()
    router.eval()
    router.cost(2, 6)
    router.nominal_rows(2, 6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not router.training
    assert all((parameter.grad == 7).all() for parameter in router.parameters())


@EVERY_ROUTER
def test_nominal_rows_is_what_evaluation_runs(case):
    layer = make_layer(case).eval()
    for groups, positions in ((2, 6), (5, 3), (1, 1)):
        x, ids = data(groups, positions)
        assert layer(x, ids)[1].work.executed == layer.router.nominal_rows(groups, positions)


@pytest.mark.parametrize("case", ["switch", "top2", "topk", "expert_choice", "expert_choice_batch", "soft"])
def test_cost_of_the_router_product(case):
    """One (T, D) x (D, E) product forward, two backward: the weight's gradient and the input's."""
    router = make_router(case)
    columns = E * 2 if case == "soft" else E
    # The mean probability of the balance loss is a product with a vector of ones, forward and backward.
    balance = 2 * (2 * 12 * E) if router.loss_weights else 0
    assert router.cost(2, 6).training == 3 * 2 * 12 * D * columns + balance


def test_hash_projection_costs_its_forward_only():
    cost = make_router("hash_projection").cost(2, 6)
    assert (cost.forward, cost.backward) == (2 * 12 * D * 12, 0)
    assert make_router("hash").cost(2, 6).training == 0


# --- padding ---


def pad(x, ids, extra):
    groups, positions, width = x.shape
    padded, padded_ids = torch.full((groups, positions + extra, width), 3.0), torch.zeros(groups, positions + extra).long()
    padded[:, :positions], padded_ids[:, :positions] = x, ids
    mask = torch.zeros(groups, positions + extra, dtype=torch.bool)
    mask[:, :positions] = True
    return padded, padded_ids, mask


@EVERY_ROUTER
@pytest.mark.parametrize("capacity_group", ["sequence", "batch"])
def test_padding_changes_nothing(case, capacity_group):
    """In training and under capacity: same outputs, losses and row counts as without the padding."""
    layer = make_layer(case, quiet=True, capacity_factor=1.25, capacity_group=capacity_group)
    x, ids = data(3, 8)
    plain, routing = layer(x, ids)
    padded_x, padded_ids, mask = pad(x, ids, 5)
    padded, padded_routing = layer(padded_x, padded_ids, mask)
    assert torch.allclose(padded[:, :8], plain, atol=1e-5)
    assert padded[:, 8:].abs().max() == 0
    assert padded_routing.work.kept == routing.work.kept
    for name, loss in routing.losses.items():
        assert torch.allclose(padded_routing.losses[name], loss, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in ROUTER_CASES if case != "expert_choice_batch"])
def test_sequences_of_different_length(case):
    """Each sequence by itself, cut to its own length, wherever the batch is not coupled."""
    layer = make_layer(case, quiet=True, capacity_factor=1.25, capacity_group="sequence")
    assert not layer.batch_coupled
    x, ids = data(3, 8)
    lengths = [8, 5, 1]
    mask = torch.arange(8) < torch.tensor(lengths).unsqueeze(1)
    out, _ = layer(x, ids, mask)
    for group, length in enumerate(lengths):
        alone, _ = layer(x[group : group + 1, :length], ids[group : group + 1, :length])
        assert torch.allclose(out[group, :length], alone[0], atol=1e-5)
        assert not out[group, length:].any()


@pytest.mark.parametrize("case", ["switch", "top2", "topk", "hash"])
def test_leading_padding_takes_no_capacity(case):
    """Served first by position, padding would push every real token out."""
    layer = make_layer(case, quiet=True, capacity_factor=1.0)
    x, ids = data(1, 4)
    both, both_ids = torch.cat([x, x], 1), torch.cat([ids, ids], 1)
    mask = torch.tensor([[False] * 4 + [True] * 4])
    out, routing = layer(both, both_ids, mask)
    plain, plain_routing = layer(x, ids)
    assert torch.allclose(out[:, 4:], plain, atol=1e-5)
    assert routing.work.kept == plain_routing.work.kept > 0


# --- what an output may depend on ---

PROBES = {
    **{case: (case, {}) for case in ROUTER_CASES},
    **{f"{case}-sequence": (case, {"capacity_group": "sequence"}) for case in ("switch", "top2")},
    "topk-capacity": ("topk", {"capacity_factor": 0.75}),
    "topk-capacity-sequence": ("topk", {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    "hash-capacity-sequence": ("hash", {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    "hash-capacity": ("hash", {"capacity_factor": 0.75}),
    "top2-dropless": ("top2", {"capacity_factor": None}),
    "top2-position": ("top2", {"capacity_factor": 0.75, "capacity_group": "sequence", "priority": "position"}),
    "switch-probability": ("switch", {"priority": "probability", "capacity_factor": 0.75}),
    "topk-choice": ("topk", {"priority": "choice", "capacity_factor": 0.75, "capacity_group": "sequence"}),
    "switch-random": ("switch", {"priority": "random", "capacity_factor": 0.75}),
}
DECLARED = {  # causal, batch_coupled: the table of the routing reference, §3
    "switch": (True, True), "top2": (False, True), "topk": (True, False), "topk_raw": (True, False),
    "expert_choice": (False, False), "expert_choice_batch": (True, True), "hash": (True, False),
    "hash_projection": (True, False), "soft": (False, False), "switch-sequence": (True, False),
    "top2-sequence": (False, False), "topk-capacity": (True, True), "topk-capacity-sequence": (True, False),
    "hash-capacity-sequence": (True, False), "hash-capacity": (True, True), "top2-dropless": (True, False),
    "top2-position": (True, False), "switch-probability": (False, True), "topk-choice": (False, False),
    "switch-random": (False, True),
}  # fmt: skip


def outputs(layer, x, ids, seed):
    torch.manual_seed(seed)
    return layer(x, ids)[0]


def changed(probe, seed, part):
    """Whether outputs of the last group's first half change with its later half, or with the groups before it."""
    case, options = PROBES[probe]
    layer = make_layer(case, seed=seed, **{"capacity_factor": 0.75 if case in ("switch", "top2") else None, **options})
    x, ids = data(3, 12, seed)
    other, other_ids = data(3, 12, seed + 1000)
    before = outputs(layer, x, ids, seed)
    x, ids = x.clone(), ids.clone()
    where = (slice(2, 3), slice(6, None)) if part == "later" else (slice(0, 2), slice(None))
    x[where], ids[where] = other[where], other_ids[where]
    after = outputs(layer, x, ids, seed)
    seen = slice(0, 6) if part == "later" else slice(None)
    return not torch.allclose(before[2, seen], after[2, seen], atol=1e-5)


@pytest.mark.parametrize("probe", PROBES)
def test_declarations_are_those_of_the_reference(probe):
    case, options = PROBES[probe]
    layer = make_layer(case, **options)
    assert (layer.causal, layer.batch_coupled) == DECLARED[probe]


@pytest.mark.parametrize("probe", PROBES)
def test_later_tokens(probe):
    """In training: causal layers never react to later tokens; the others do, so the probe can see a leak."""
    leaks = [changed(probe, seed, "later") for seed in range(8)]
    assert any(leaks) == (not DECLARED[probe][0])


@pytest.mark.parametrize("probe", PROBES)
def test_other_sequences(probe):
    coupled = [changed(probe, seed, "others") for seed in range(8)]
    assert any(coupled) == DECLARED[probe][1]


def test_top2_at_the_usual_capacity_leaks():
    """GShard's order with capacity factor 1.25, once the experts are not equally wanted."""
    leaks = 0
    for seed in range(10):
        layer = make_layer("top2", seed=seed, quiet=True, capacity_factor=1.25)
        # Real tokens share a mean, so some experts are wanted more than others.
        x, ids = data(1, 64, seed)
        x = x + 1
        before = layer(x, ids)[0]
        x[:, 32:] = data(1, 64, seed + 1000)[0][:, 32:] - 1
        leaks += not torch.allclose(before[:, :32], layer(x, ids)[0][:, :32], atol=1e-5)
    assert leaks >= 5


# --- shapes ---


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(ROUTER_CASES)), st.integers(1, 4), st.integers(1, 6), st.sampled_from([3, 4, 8]),
    st.integers(2, 5), st.booleans(), st.booleans(), st.sampled_from([None, 0.5, 1.25]), st.sampled_from(["sequence", "batch"]),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(case, groups, positions, width, experts, training, masked, factor, capacity_group, seed):
    router = make_router(case, d_model=width, num_experts=experts, seed=seed)
    bank = ExpertBank("gelu", num_experts=experts, d_model=width, d_hidden=4)
    initialise(bank, seed)
    layer = MixtureLayer(router, bank, capacity_factor=factor, capacity_group=capacity_group).train(training)
    x, ids = data(groups, positions, seed, width)
    mask = torch.rand(groups, positions, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    out, routing = layer(x, ids, mask)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    check_plan(routing.plan, groups, positions)
    check_values(routing.plan, groups, positions)
    work = routing.work
    assert 0 <= work.kept <= work.assigned <= router.nominal_rows(groups, positions)
    assert work.kept <= work.executed
    if mask is not None:
        assert out[~mask].abs().sum() == 0
    for loss in routing.losses.values():
        assert loss.shape == ()
        assert torch.isfinite(loss)
