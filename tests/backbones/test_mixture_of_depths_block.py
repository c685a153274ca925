"""Whole blocks as experts: the chosen go through attention and feed-forward, the others pass unchanged."""

import pytest
import torch

from routelab.backbones.attention import Block, rotate, rotation_of
from routelab.backbones.mixture_of_depths_block import BlockMixture
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.moe_arm import per_token_routers
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.routers.base import Router, Routing
from routelab.routers.plans import PerExpert, share_TE

S, V, D = 12, 64, 16
TEXT = Task("toy", "language", InputSpec("text", (S,), vocab_size=V), V)
IMAGE = Task("toy", "classification", InputSpec("image", (1, 8, 8)), 3)
TABLE = Task("toy", "classification", InputSpec("table", (9,)), 3)
TASKS = {"decoder": TEXT, "vit": IMAGE, "tokens": TABLE}


def arm_of(backbone="decoder", seed=0, sizing=False, arm="mixture_of_depths", shape=None, experts=None, **router):
    made = {"name": backbone, "d_model": D, "depth": 2, "heads": 2, **({"patch_size": 2} if backbone == "vit" else {})}
    spec = ArmSpec(arm, {**made, **(shape or {})}, experts or {}, router)
    return make_arm(spec, TASKS.get(backbone, TABLE), seed, sizing=sizing)


def batch_of(backbone, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if backbone == "decoder":
        ids = torch.randint(0, V, (size, S + 1), generator=generator)
        return Batch(ids[:, :-1], ids[:, 1:])
    x = torch.randn(size, *TASKS[backbone].inputs.shape, generator=generator)
    return Batch(x, torch.randint(0, 3, (size,), generator=generator))


def clear(arm, seed=0):
    """Router weights large enough that choices differ between tokens."""
    for layer in arm.mixtures:
        with torch.no_grad():
            for parameter in layer.router.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return arm


def by_hand(block, x, chosen, weight, rotation, causal):
    """One sequence (S, D): attention and feed-forward as a dense block of the chosen positions alone."""
    q, k, v = block.attention.qkv(block.attention_norm(x[chosen])).view(len(chosen), 3, 2, -1).permute(1, 2, 0, 3)
    if rotation is not None:
        here = (rotation[0][chosen], rotation[1][chosen])
        q, k = rotate(q.unsqueeze(0), here)[0], rotate(k.unsqueeze(0), here)[0]
    score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        score = score.masked_fill(torch.ones(len(chosen), len(chosen)).triu(1).bool(), -torch.inf)
    mixed = block.attention.out((score.softmax(-1) @ v).transpose(0, 1).reshape(len(chosen), -1))
    bank = block.feed_forward.experts
    hidden = torch.nn.functional.gelu(block.feed_forward_norm(x[chosen] + mixed) @ bank.up[0])
    out = x.clone()
    for place, row in enumerate(chosen):
        out[row] = x[row] + weight[place] * (mixed + hidden @ bank.down[0])[place]
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backbone", TASKS)
def test_a_block_by_hand(backbone, training):
    """Chosen positions see one another, in order and at their own angles; the rest come out as they went in."""
    arm = clear(arm_of(backbone, capacity=0.5)).train(training)
    block = arm.network.blocks[1]
    causal = backbone == "decoder"
    x = torch.randn(3, S, D, generator=torch.Generator().manual_seed(1))
    rotation = rotation_of(0, S, D // 2, 1e4) if causal else None
    out, routing = block(x, rotation=rotation)
    logits = block.attention_norm(x) @ block.feed_forward.router.weight[0]
    counts = []
    for group in range(3):
        rows = logits[group].topk(S // 2).indices.sort().values if training else (logits[group] > 0).nonzero().squeeze(1)
        counts.append(len(rows))
        expected = by_hand(block, x[group], rows.tolist(), logits[group][rows], rotation, causal)
        torch.testing.assert_close(out[group], expected, atol=1e-5, rtol=1e-4)
    assert len(set(counts)) == 1 or not training
    assert (routing.work.kept, routing.work.pairs_kept) == (sum(counts), sum(count**2 for count in counts))


class Everyone(Router):
    """Sends everyone through, with weight 1, named from the last to the first."""

    whole_block = True

    def forward(self, inputs):
        groups, positions, _ = inputs.x.shape
        backwards = torch.arange(positions).flip(0).expand(groups, 1, positions)
        return Routing(PerExpert(backwards, torch.ones(groups, 1, positions), 1))


def test_everyone_with_weight_one_is_the_dense_block():
    mixture = BlockMixture(Everyone(D, 1), ExpertBank("gelu", num_experts=1, d_model=D, d_hidden=24))
    blocks = torch.nn.ModuleList(Block(D, 2, each, causal=True) for each in (FeedForward("gelu", D, 24), mixture))
    for name, parameter in dict(blocks[1].named_parameters()).items():
        twin = blocks[0].get_parameter(name.replace(".experts.", "."))
        with torch.no_grad():
            parameter.copy_(twin)
    x = torch.randn(2, S, D)
    torch.testing.assert_close(blocks[1](x)[0], blocks[0](x)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("predictor", ["router", "mlp", None])
@pytest.mark.parametrize("backbone", TASKS)
def test_every_parameter_learns(backbone, predictor):
    arm = arm_of(backbone, predictor=predictor, allow_leak=True)
    loss = arm.loss(batch_of(backbone), torch.arange(4))
    assert set(loss.penalties) == ({"predictor"} if predictor else set())
    loss.total.backward()
    for name, parameter in arm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_padding_is_never_chosen_and_changes_nothing():
    """A sequence cut to its length gives the same outputs, wherever its padding stands."""
    arm = clear(arm_of(capacity=0.5))
    for training in (True, False):
        arm.train(training)
        ids = batch_of("decoder").inputs
        mask = torch.ones(4, S, dtype=torch.bool)
        mask[1, 7:], mask[2, 1:], mask[3] = False, False, False
        out, routings = arm.network(ids, mask)
        assert out.isfinite().all()
        chosen = share_TE(routings[0].plan, 4, S, kept=True).view(4, S)
        assert not chosen[~mask].any()
        for group, length in ((0, S), (1, 7), (2, 1)):
            alone = arm.network(ids[group : group + 1, :length])[0]
            torch.testing.assert_close(out[group, :length], alone[0], atol=1e-5, rtol=1e-4)


# --- what an output depends on ---


def seen_later(arm):
    """Whether outputs before a position change with the bytes from it on."""
    found = False
    for seed in range(4):
        ids = batch_of("decoder", 6, seed).inputs
        other = ids.clone()
        other[:, 7:] = (other[:, 7:] + 31) % V
        before, after = arm.network(ids)[0][:, :7], arm.network(other)[0][:, :7]
        found |= not torch.allclose(before, after, atol=1e-5)
    return found


@pytest.mark.parametrize("predictor", ["router", "mlp"])
def test_training_sees_later_bytes_and_evaluation_does_not(predictor):
    """So the arm is taken, is not called causal, and is marked for its training alone."""
    arm = clear(arm_of(capacity=0.5, predictor=predictor))
    assert seen_later(arm.train())
    assert not seen_later(arm.eval())
    assert 0 < sum(int(r.work.kept) for r in arm.network(batch_of("decoder").inputs)[1]) < 4 * S
    assert (arm.causal, arm.leaks, arm.leaks_in_training) == (False, None, "later tokens")
    assert not arm.evaluation_coupled


def test_without_a_predictor_evaluation_sees_later_bytes_and_is_refused():
    arm = clear(arm_of(capacity=0.5, predictor=None, allow_leak=True)).eval()
    assert seen_later(arm)
    assert (arm.causal, arm.leaks, arm.leaks_in_training) == (False, "later tokens", None)
    with pytest.raises(
        UsageError, match="lets an output depend on later tokens.*mixture_of_depths with router.predictor=router"
    ):
        arm_of(predictor=None)


@pytest.mark.parametrize("backbone", ["vit", "tokens"])
def test_other_tasks_have_nothing_to_leak(backbone):
    for predictor in ("router", None):
        arm = arm_of(backbone, predictor=predictor)
        assert (arm.leaks, arm.leaks_in_training, arm.batch_coupled) == (None, None, False)


@pytest.mark.parametrize("backbone", TASKS)
def test_a_prediction_does_not_depend_on_the_batch(backbone):
    arm, batch = clear(arm_of(backbone, capacity=0.5)).eval(), batch_of(backbone)
    whole = arm.predict(batch).outputs
    for index in range(4):
        alone = arm.predict(batch.select(slice(index, index + 1))).outputs
        torch.testing.assert_close(whole[index : index + 1], alone, atol=1e-5, rtol=1e-4)


# --- sampling ---


def test_sampling_computes_the_context_anew():
    """The cache is left alone: it holds the keys of every position, and a block's own are those of the chosen only."""
    network = clear(arm_of(capacity=0.5)).network.eval()
    assert not network.cacheable
    prompt = batch_of("decoder", 2).inputs[:, :5]
    sampled = network.generate(prompt, 4, temperature=0)
    for place in range(5, 9):
        assert torch.equal(sampled[:, place], network(sampled[:, :place])[0][:, -1].argmax(-1))
    with pytest.raises(ValueError, match="keeps no cache of keys and values; use cache=False"):
        network(prompt, None, network.caches())


# --- arms ---


def test_every_second_block_unless_the_config_says_otherwise():
    for every, expected in ((None, [False, True] * 2), (1, [True] * 4), (4, [False] * 3 + [True])):
        arm = arm_of(shape={"depth": 4, "moe_every": every})
        assert [isinstance(block.feed_forward, BlockMixture) for block in arm.network.blocks] == expected
    assert len(arm_of(shape={"depth": 1}).mixtures) == 1
    with pytest.raises(UsageError, match="moe_every is 2, more than there are layers"):
        arm_of(shape={"depth": 1, "moe_every": 2})


@pytest.mark.parametrize("backbone", TASKS)
def test_shared_parts_start_as_the_dense_ones(backbone):
    """The one expert too: it is the block's feed-forward, whatever the number of experts in the comparison."""
    dense = dict(arm_of(backbone, arm="dense").named_parameters())
    routed = dict(arm_of(backbone, experts={"count": 8}).named_parameters())
    for name, parameter in dense.items():
        twin = routed.get(name, routed.get(name.replace(".feed_forward.", ".feed_forward.experts.")))
        assert torch.equal(twin.reshape(parameter.shape), parameter), name
    assert {name.rsplit(".", 1)[-1] for name in set(routed) - set(dense)} == {"up", "down", "weight"}


def test_costs_by_hand():
    """Depth 2, the second block routed: 2 of 12 positions (an eighth, rounded up), each a projection and a feed-forward."""
    arm, dense = arm_of(shape={"hidden": 24}), arm_of(arm="dense", shape={"hidden": 24})
    row, pair = 2 * (4 * D * D + 2 * D * 24), 4 * D
    assert dense.flops_per_example() - arm.flops_per_example() == 10 * row + (144 - 4) * pair - 2 * S * D
    block = 4 * D * D + 2 * D * 24 + D  # projections, feed-forward, and the norm before it
    assert arm.total_params - dense.total_params == D
    assert arm.total_params - arm.active_params == round(block * (1 - 2 / 12))


@pytest.mark.parametrize("backbone", TASKS)
def test_sizing_counts_without_memory(backbone):
    real, sized = arm_of(backbone), arm_of(backbone, sizing=True)
    assert sized.flops_per_example() == real.flops_per_example()
    assert (sized.total_params, sized.active_params) == (real.total_params, real.active_params)


def test_what_is_refused():
    with pytest.raises(UsageError, match="backbone 'mlp' has none of; backbones that have: decoder, tokens, vit"):
        make_arm(ArmSpec("mixture_of_depths", {"name": "mlp", "d_model": D}), TABLE, 0)
    with pytest.raises(UsageError, match="experts.shared is 1; beside whole blocks there is no place for shared experts"):
        arm_of(experts={"shared": 1})


def test_mlp_is_not_offered_it():
    arm = make_arm(ArmSpec("switch", {"name": "mlp", "d_model": D}, {"count": 4}), TABLE, 0)
    assert "mixture_of_depths" not in per_token_routers(arm.mixtures[0])
    assert "switch" in per_token_routers(arm.mixtures[0])
