"""The causal decoder: no byte sees a later one, a cache changes nothing, and token ids reach the routers."""

import math

import pytest
import torch

from routelab.backbones.attention import Block, KeyValues, SelfAttention, rotate, rotation_of
from routelab.backbones.decoder import Decoder, draw
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task
from routelab.experts.feed_forward import FeedForward

S, V = 12, 256
BACKBONE = {"name": "decoder", "d_model": 16, "depth": 2, "heads": 2}
TASK = Task("toy", "language", InputSpec("text", (S,), vocab_size=V), V, torch.arange(V))
CACHED = {
    "dense": {},
    "switch": {"capacity_factor": None},
    "topk": {},
    "top2": {"capacity_factor": None},
    "hash": {},
    "moe_plus_plus": {},
    "hash-balanced": {"method": "balanced"},
}
UNCACHED = {
    "hash-bigram": {"method": "bigram"},
    "hash-previous": {"method": "previous"},
    "hash-position": {"method": "position"},
    "expert_choice": {"across": "batch"},
    "soft": {"allow_leak": True},
}


def arm_of(case, seed=0, **backbone):
    router = {**CACHED, **UNCACHED}[case]
    experts = {} if case == "dense" else {"count": 4, "hidden": 24}
    return make_arm(ArmSpec(case.split("-")[0], {**BACKBONE, **backbone}, experts, router), TASK, seed)


def ids_of(batch=3, length=S, seed=0):
    return torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


# --- causality ---


@pytest.mark.parametrize("case", ["dense", "switch", "topk", "top2", "hash", "hash-bigram", "expert_choice"])
@pytest.mark.parametrize("training", [False, True])
def test_later_bytes_change_nothing_before_them(case, training):
    arm = arm_of(case).train(training)
    ids = ids_of()
    for place in (1, 5, S - 1):
        other = ids.clone()
        other[:, place:] = (other[:, place:].long() + 101).to(torch.uint8)
        outputs = []
        for given in (ids, other):
            torch.manual_seed(0)  # the same jitter and second choices
            outputs.append(arm.network(given)[0])
        torch.testing.assert_close(outputs[0][:, :place], outputs[1][:, :place], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(outputs[0][:, place:], outputs[1][:, place:], atol=1e-4)


def test_capacity_is_by_sequence():
    """With capacity over the whole batch, an earlier sequence could push out rows of a later one."""
    arm = make_arm(ArmSpec("switch", BACKBONE, {"count": 4, "hidden": 24}, {"capacity_factor": 0.5, "jitter": 0.0}), TASK, 0)
    assert arm.mixtures[0].capacity_group == "sequence"
    assert not arm.batch_coupled
    ids = ids_of(4)
    together = arm.train().network(ids)[0]
    torch.testing.assert_close(together[2:3], arm.network(ids[2:3])[0], atol=1e-5, rtol=1e-4)
    other = make_arm(ArmSpec("switch", BACKBONE, {"count": 4}, {"capacity_group": "batch"}), TASK, 0)
    assert other.mixtures[0].capacity_group == "batch"
    assert other.batch_coupled
    assert not other.evaluation_coupled


def test_a_mask_hides_padding():
    arm = arm_of("topk").eval()
    ids, mask = ids_of(2), torch.ones(2, S, dtype=torch.bool)
    mask[:, 8:] = False
    before = arm.network(ids, mask)[0]
    torch.testing.assert_close(before[:, :8], arm.network(ids[:, :8])[0], atol=1e-5, rtol=1e-4)
    # Padding at the start leaves rows without a key but their own: no NaN, and the rest as if it began there.
    front = torch.zeros(2, S, dtype=torch.bool)
    front[:, 4:] = True
    found = arm.network(ids, front)[0]
    assert found.isfinite().all()
    moved = arm.network(torch.cat([ids_of(2, 4, 9), ids[:, 4:]], 1), front)[0]
    torch.testing.assert_close(found[:, 4:], moved[:, 4:], atol=1e-5, rtol=1e-4)


# --- the cache ---


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CACHED)
def test_cached_logits_equal_the_whole_sequence(case, tied):
    network = arm_of(case, tied=tied).network.eval()
    assert network.cacheable
    ids = ids_of()
    with torch.no_grad():
        whole = network(ids)[0]
        for steps in ([1] * S, [5, 1, 1, 3, 2], [S]):
            caches, parts, start = network.caches(), [], 0
            for step in steps:
                parts.append(network(ids[:, start : start + step], None, caches)[0])
                start += step
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", UNCACHED)
def test_routers_that_look_around_are_not_cached(case):
    """Fed one by one, a bigram router would take every byte for the first of its sequence."""
    assert not arm_of(case).network.cacheable
    limited = make_arm(ArmSpec("switch", BACKBONE, {"count": 4}, {"eval_capacity_factor": 1.0}), TASK, 0)
    assert not limited.network.cacheable


@pytest.mark.parametrize("case", [*CACHED, "hash-bigram"])
def test_sampling_is_the_same_with_and_without_a_cache(case):
    network = arm_of(case).network
    prompt = ids_of(2, 5)
    # Beyond S positions the context slides; both ways cut it alike.
    found = [
        network.generate(prompt, 2 * S, top_k=20, generator=torch.Generator().manual_seed(1), cache=cache)
        for cache in (True, False)
    ]
    assert found[0].shape == (2, 5 + 2 * S)
    assert torch.equal(found[0][:, :5], prompt.long())
    assert torch.equal(found[0], found[1])


def test_sampling_follows_the_logits():
    network = arm_of("dense").network
    prompt = ids_of(1, 4)
    greedy = network.generate(prompt, 3, temperature=0)
    for place in range(4, 7):
        assert greedy[0, place] == network.eval()(greedy[:, :place])[0][0, -1].argmax()
    network.train()
    network.generate(prompt, 1)
    assert network.training, "sampling leaves the mode as it was"
    long = network.generate(ids_of(1, 3 * S), 2)
    assert long.shape == (1, 3 * S + 2)


def test_draws():
    logits = torch.tensor([[0.0, math.log(3.0), -50.0]]).expand(4000, -1)
    drawn = draw(logits, 1.0, None, torch.Generator().manual_seed(0)).flatten()
    assert (drawn == 1).float().mean() == pytest.approx(0.75, abs=0.03)
    cold = draw(logits, 0.5, None, torch.Generator().manual_seed(0)).flatten()
    assert (cold == 1).float().mean() == pytest.approx(0.9, abs=0.03)  # 9 : 1
    assert (draw(logits, 1.0, 1, None) == 1).all()
    assert (draw(logits, 0, None, None) == 1).all()


def test_wrong_sampling_is_refused():
    network = arm_of("dense").network
    with pytest.raises(ValueError, match="temperature=-1"):
        network.generate(ids_of(1), 1, temperature=-1)
    with pytest.raises(ValueError, match="prompt has the shape"):
        network.generate(torch.zeros(1, 0), 1)
    full = KeyValues(2)
    full.extend(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(ValueError, match="holds 2 of 2 positions; 1 more do not fit"):
        full.extend(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


# --- rotary positions ---


def test_rotation_by_hand():
    """Width 4, base 100: the pairs (0, 2) and (1, 3) turn by m and m / 10."""
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    turned = rotate(x, rotation_of(3, 1, 4, 100.0)).flatten().tolist()
    assert turned == pytest.approx([math.cos(3), -2 * math.sin(0.3), math.sin(3), 2 * math.cos(0.3)], abs=1e-6)


def test_products_depend_on_distance_only():
    """Su et al. 2021, eq. 11-16: <R_m q, R_n k> is a function of m - n."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))

    def product(m, n):
        return (rotate(query, rotation_of(m, 1, 8, 1e4)) * rotate(key, rotation_of(n, 1, 8, 1e4))).sum().item()

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 5), abs=1e-4)


def test_attention_by_hand():
    """Against softmax(q k / sqrt(H)) v with the upper half masked out, head by head."""
    attention = SelfAttention(8, 2, causal=True, bias=False)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    rotation = rotation_of(0, 5, 4, 1e4)
    query, key, value = attention.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    score = rotate(query, rotation) @ rotate(key, rotation).transpose(-1, -2) / 2
    weight = score.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    expected = attention.out((weight @ value).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x, rotation=rotation), expected, atol=1e-6, rtol=1e-5)


def test_a_block_without_options_is_the_old_one():
    block = Block(8, 2, FeedForward("gelu", 8, 16))
    assert set(dict(block.named_parameters())) >= {"attention.qkv.bias", "attention.out.bias", "attention_norm.bias"}
    bare = Block(8, 2, FeedForward("gelu", 8, 16), causal=True, bias=False, norm="rms")
    assert not [name for name, _ in bare.named_parameters() if name.endswith("bias")]


# --- token ids, parameters, errors ---


def test_token_ids_reach_the_router():
    arm = arm_of("hash")
    ids = ids_of()
    _, routings = arm.network(ids)
    for layer, routing in zip(arm.mixtures, routings, strict=True):
        assert torch.equal(routing.plan.expert.view(3, S), layer.router.table[ids.long()])


def test_balanced_hashing_uses_the_training_frequencies():
    arm = arm_of("hash-balanced")
    load = torch.zeros(4).index_add_(0, arm.mixtures[0].router.table, torch.arange(V).float())
    assert load.max() / load.min() < 1.01


def test_tied_output_is_the_embedding():
    tied, free = arm_of("dense", tied=True), arm_of("dense")
    assert free.total_params - tied.total_params == V * 16
    assert tied.flops_per_example() == free.flops_per_example()
    loss = tied.loss(Batch(ids_of(), ids_of(seed=1)), torch.arange(3))
    loss.total.backward()
    assert tied.network.embedding.grad.abs().max() > 0
    assert loss.task.item() == pytest.approx(math.log(V), abs=0.3)


def test_bytes_and_long_ids_are_one():
    arm, ids = arm_of("topk").eval(), ids_of()
    assert torch.equal(arm.network(ids)[0], arm.network(ids.long())[0])
    small, wide = Batch(ids, ids), Batch(ids.long(), ids.long())
    assert arm.loss(small, torch.arange(3)).task == arm.loss(wide, torch.arange(3)).task


def test_language_loss_by_hand():
    outputs = torch.zeros(2, 3, V)
    outputs[0, 1, 7] = math.log(255.0)
    targets = torch.tensor([[1, 7, 2], [3, 4, 5]], dtype=torch.uint8)
    loss = TASK.loss(outputs, targets)
    # Where 7 has weight 255 among 255 others of weight 1, it has probability 1/2.
    assert loss.tolist() == pytest.approx([(2 * math.log(V) + math.log(2)) / 3, math.log(V)], rel=1e-6)
    assert TASK.summary(TASK.statistics(outputs, targets))["bits_per_byte"] == pytest.approx((8 * 5 + 1) / 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads is 3; d_model"),
        ({"heads": 16}, "heads is 16; d_model"),
        ({"depth": 0}, "depth is 0"),
        ({"rotary_base": 1.0}, "rotary_base is 1.0"),
        ({"rotary_base": float("inf")}, "rotary_base is inf; it must be above 1 and finite"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        arm_of("dense", **options)


def test_other_data_are_refused():
    images = Task("toy", "classification", InputSpec("image", (1, 8, 8)), 3)
    with pytest.raises(UsageError, match="decoder reads text; this data has the kind 'image'"):
        make_arm(ArmSpec("dense", BACKBONE), images, 0)
    with pytest.raises(ValueError, match="tied is true; the 3 outputs"):
        Decoder(InputSpec("text", (S,), V), 3, lambda slot: FeedForward("gelu", slot.d_model, 8), tied=True)
