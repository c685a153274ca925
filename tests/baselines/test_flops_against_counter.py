"""Three counts of the same training step: comparisons per FLOP are worth what this agreement is worth."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.conformance.cases import cases
from routelab.data.task import Batch, InputSpec, Task
from routelab.routers.plans import share_TE
from routelab.routers.router_registry import ROUTERS
from routelab.training.ledger import counter_formulas

D, DEPTH, HEADS, PATCH, CLASSES, HIDDEN, EXPERTS = 16, 2, 2, 2, 10, 32, 4
S = (8 // PATCH) ** 2
CATEGORIES = (0, 0, 5, 0, 0, 3, 0)
"""A table of 7 features, 2 of them codes."""
NUMBERS, FEATURES = CATEGORIES.count(0), len(CATEGORIES)

CASES = {
    "dense": ("dense", {}),
    # Every router by itself, and below what is charged otherwise: drops, kernels, options. Whole blocks come after.
    **{name: case for name, case in cases().items() if name == case[0] and not ROUTERS.get(name).whole_block},
    "switch-drops": ("switch", {"capacity_factor": 0.5}),
    "switch-batched": ("switch", {"kernel": "batched"}),
    "topk-loop": ("topk", {"kernel": "loop"}),
    "topk-fused": ("topk", {"kernel": "fused"}),
    "topk-batched": ("topk", {"kernel": "batched"}),
    "expert_choice-fused": ("expert_choice", {"kernel": "fused"}),
    "soft-fused": ("soft", {"kernel": "fused"}),
    "llama4-fused": ("llama4", {"kernel": "fused"}),
    "expert_choice-batch": cases()["expert_choice_batch"],
    "sinkhorn-2": cases()["sinkhorn_2"],
    "random-frozen": cases()["random_frozen"],
    "random-blend": ("random", {"evaluation": "blend"}),
    "relu-drops": ("relu", {"capacity_factor": 0.5}),
    "moe_plus_plus-first": ("moe_plus_plus", {"follows": False, "capacity_factor": None}),
}
WHOLE_BLOCKS = {
    "mixture_of_depths": {"capacity": 0.5},
    "mixture_of_depths-mlp": {"capacity": 0.3, "predictor": "mlp"},
    "mixture_of_depths-best": {"capacity": 0.5, "predictor": None, "allow_leak": True},
    "mixture_of_depths-fused": {"kernel": "fused"},
}
"""Routers of whole blocks, whose rows attend too: of two blocks they route the second."""
LATENT = D // 4
SHARED = {"deepseek": 1, "deepseek_moe": 2, "llama4": 1}
"""Experts that take every token, by router."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Products this small gain nothing from threads, and waiting threads on a shared machine cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPTIONS = {"vit": {"heads": HEADS, "patch_size": PATCH}, "tokens": {"heads": HEADS}, "mlp": {}}


def build(case, kind="gelu", backbone="vit"):
    name, router = CASES[case]
    shape = {"name": backbone, "d_model": D, "depth": DEPTH, "hidden": HIDDEN, **OPTIONS[backbone]}
    experts = {"kind": kind} if name == "dense" else {"kind": kind, "count": EXPERTS}
    # What mlp refuses is counted all the same once it is overridden.
    router = {**router, "allow_leak": True} if backbone == "mlp" else router
    table = InputSpec("table", (FEATURES,), categories=CATEGORIES)
    task = Task("toy", "classification", InputSpec("image", (1, 8, 8)) if backbone == "vit" else table, CLASSES)
    return make_arm(ArmSpec(name, shape, experts, router), task, 0)


def batch_of(size, backbone="vit"):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, CLASSES, (size,), generator=generator)
    if backbone == "vit":
        return Batch(torch.randn(size, 1, 8, 8, generator=generator), targets)
    columns = [
        torch.randint(0, codes, (size,), generator=generator).float() if codes else torch.randn(size, generator=generator)
        for codes in CATEGORIES
    ]
    return Batch(torch.stack(columns, 1), targets)


def step(arm, batch, counter=None):
    arm.zero_grad()
    torch.manual_seed(0)
    if counter is None:
        loss = arm.loss(batch, torch.arange(len(batch)))
        loss.total.backward()
        return loss
    with counter:
        loss = arm.loss(batch, torch.arange(len(batch)))
        loss.total.backward()
    return loss


def by_hand(case, batch, rows, matrices, backbone="vit"):
    """Fixed part + rows x cost of a row, from the shapes alone. A product with gradients for both sides is 3 products."""
    groups, positions = {"vit": (batch, S), "tokens": (batch, FEATURES), "mlp": (1, batch)}[backbone]
    tokens = groups * positions
    # Inputs need no gradient; feature tokens are made without a product.
    patch = {"vit": 2 * (2 * tokens * PATCH**2 * D), "tokens": 0, "mlp": 2 * (2 * tokens * NUMBERS * D)}[backbone]
    mixes = backbone != "mlp"
    projections = 3 * (2 * tokens * D * 4 * D) * mixes
    attention = (2 + 5) * (2 * groups * positions**2 * D) * mixes
    head = 3 * (2 * batch * D * CLASSES)
    # E * P: 16 for 16 patches, 8 for 7 features, and one for each expert where a group's size is not known.
    follows = CASES[case][1].get("follows", True)
    slots = 3 * (2 * tokens * {"vit": 16, "tokens": 8, "mlp": 4}[backbone] * D)
    router = {
        "dense": 0,
        "hash": 2 * tokens * D * 12,  # forward only
        "random": 2 * tokens * D * EXPERTS * CASES[case][1].get("frozen", False),
        "sequence": 3 * (2 * groups * D * EXPERTS),
        "hierarchical": 3 * (2 * tokens * D * (EXPERTS + 2)),  # two groups
        "soft": slots + 2 * slots,  # the logits, then dispatch and combine
        "noisy_topk": 2 * 3 * (2 * tokens * D * EXPERTS),  # the logits, and the noise's deviation
        "cosine": 3 * (2 * tokens * (D * 8 + 8 * EXPERTS)),  # into 8 dimensions, then with the experts
        "latent": 3 * (2 * tokens * D * (EXPERTS + 2 * LATENT)),  # the logits, into the latent space and back
        # Logits of 4 experts and 1 zero, 1 copy, 1 constant; the constant's projection, and its vector; the residual of one layer.
        "moe_plus_plus": 3 * (2 * tokens * (D * (EXPERTS + 3) + D * 2 + D + (EXPERTS + 3) ** 2 * follows / DEPTH)),
    }.get(CASES[case][0], 3 * (2 * tokens * D * EXPERTS))
    per_row = 3 * (2 * matrices * (LATENT if case == "latent" else D) * HIDDEN)
    rows += DEPTH * tokens * SHARED.get(CASES[case][0], 0)
    return patch + head + DEPTH * (projections + attention + router) + rows * per_row


@pytest.mark.parametrize("backbone", OPTIONS)
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("case", CASES)
def test_three_counts_agree(case, kind, backbone):
    size = 8
    arm, batch = build(case, kind, backbone), batch_of(size, backbone)
    step(arm, batch)  # the first call counts the router's cost by running it
    counter = FlopCounterMode(display=False, custom_mapping=counter_formulas())
    loss = step(arm, batch, counter)
    counted, executed = counter.get_total_flops(), float(loss.flops.executed)
    positions = {"vit": S, "tokens": FEATURES, "mlp": 1}[backbone]
    rows = DEPTH * size * positions if case == "dense" else sum(int(routing.work.executed) for routing in loss.routings)
    assert executed == pytest.approx(counted, rel=0.01)
    assert by_hand(case, size, rows, 3 if kind == "swiglu" else 2, backbone) == pytest.approx(counted, rel=0.01)
    if case == "dense":
        assert executed == counted, "nothing is approximated here"
    # The experts' share is large enough that a row miscounted by a tenth would show.
    assert rows * 3 * 4 * D * HIDDEN > 0.1 * counted


# Products of one row, in D * HIDDEN: D * D of them, or low-rank updates of two matrices beside the shared ones.
KIND_ROWS = {"linear": D / HIDDEN, "lora": 2 + 8 * 2 * (D + HIDDEN) / (D * HIDDEN)}


@pytest.mark.parametrize("kind", KIND_ROWS)
@pytest.mark.parametrize(
    "case", ["dense", "topk", "topk-loop", "topk-batched", "topk-fused", "switch-drops", "expert_choice", "soft", "dense_gate"]
)
def test_three_counts_agree_for_kinds(case, kind):
    """Shared matrices are charged once for every row; a dense feed-forward has no updates."""
    arm, batch = build(case, kind), batch_of(8)
    step(arm, batch)
    counter = FlopCounterMode(display=False, custom_mapping=counter_formulas())
    loss = step(arm, batch, counter)
    counted = counter.get_total_flops()
    rows = DEPTH * 8 * S if case == "dense" else sum(int(routing.work.executed) for routing in loss.routings)
    per_row = 2 if (case, kind) == ("dense", "lora") else KIND_ROWS[kind]
    assert float(loss.flops.executed) == pytest.approx(counted, rel=0.01)
    assert by_hand(case, 8, rows, per_row) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("backbone", OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_forward_counts_agree(case, backbone):
    arm, batch = build(case, backbone=backbone).eval(), batch_of(8, backbone)
    arm.predict(batch)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        prediction = arm.predict(batch)
    assert float(prediction.flops.executed) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("backbone", OPTIONS)
@pytest.mark.parametrize(
    "case",
    [
        "dense",
        "switch",
        "top2",
        "topk",
        "expert_choice",
        "hash",
        "soft",
        "noisy_topk",
        "deepseek_moe",
        "base",
        "sinkhorn",
        "hierarchical",
        "random",
        "random-blend",
        "llama4",
        "gpt_oss",
        "cosine",
        "dense_gate",
        "latent",
    ],
)
def test_nominal_flops_are_those_of_a_dropless_evaluation(case, backbone):
    """What matching makes equal is what evaluation spends, whatever the size of its batches."""
    arm = build(case, backbone=backbone).eval()
    # Soft slots in a group that is the batch are as many whatever its size: nominal is a batch of 16.
    for size in (16,) if (case, backbone) == ("soft", "mlp") else (8, 48):
        spent = float(arm.predict(batch_of(size, backbone)).flops.model) / size
        assert spent == pytest.approx(arm.flops_per_example(), rel=0.01), size


@pytest.mark.parametrize("case", ["switch", "topk", "soft"])
def test_first_call_charges_like_the_second(case):
    """The cost is counted on the side: neither the charge nor the gradients of the first step may differ."""
    arm, batch = build(case), batch_of(4)
    first = step(arm, batch)
    gradients = [p.grad.clone() for p in arm.parameters()]
    second = step(arm, batch)
    assert float(first.flops.executed) == float(second.flops.executed)
    assert first.total.item() == second.total.item()
    for before, parameter in zip(gradients, arm.parameters(), strict=True):
        torch.testing.assert_close(before, parameter.grad)


def test_counter_sees_what_torch_leaves_out():
    """Without the formulas the grouped products count 0; if torch learns them, `counter_formulas` can go."""
    arm, batch = build("topk"), batch_of(4)
    step(arm, batch)
    bare, full = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=counter_formulas())
    loss = step(arm, batch, bare)
    step(arm, batch, full)
    rows = sum(int(routing.work.executed) for routing in loss.routings)
    attention = DEPTH * 7 * (2 * 4 * S * S * D)
    assert full.get_total_flops() - bare.get_total_flops() == rows * 3 * (2 * 2 * D * HIDDEN) + attention


# --- whole blocks ---


def build_whole(case, backbone):
    shape = {"name": backbone, "d_model": D, "depth": DEPTH, "hidden": HIDDEN, "heads": HEADS}
    shape |= {"patch_size": PATCH} if backbone == "vit" else {}
    table, image = InputSpec("table", (FEATURES,), categories=CATEGORIES), InputSpec("image", (1, 8, 8))
    tasks = {
        "vit": Task("toy", "classification", image, CLASSES),
        "tokens": Task("toy", "classification", table, CLASSES),
        "decoder": Task("toy", "language", InputSpec("text", (WINDOW,), vocab_size=VOCABULARY), VOCABULARY),
    }
    return make_arm(ArmSpec("mixture_of_depths", shape, {}, WHOLE_BLOCKS[case]), tasks[backbone], 0)


@pytest.mark.parametrize("backbone", ["vit", "tokens", "decoder"])
@pytest.mark.parametrize("case", WHOLE_BLOCKS)
def test_three_counts_agree_on_whole_blocks(case, backbone):
    """Attention and feed-forward of the chosen alone: C rows and C^2 pairs in each group."""
    size = 8
    arm, batch = build_whole(case, backbone), text_of(size) if backbone == "decoder" else batch_of(size, backbone)
    step(arm, batch)
    counter = FlopCounterMode(display=False, custom_mapping=counter_formulas())
    loss = step(arm, batch, counter)
    counted = counter.get_total_flops()
    assert float(loss.flops.executed) == pytest.approx(counted, rel=0.01)
    positions = {"vit": S, "tokens": FEATURES, "decoder": WINDOW}[backbone]
    tokens, chosen = size * positions, math.ceil(round(WHOLE_BLOCKS[case].get("capacity", 0.125) * positions, 9))
    ends = {
        "vit": 2 * (2 * tokens * PATCH**2 * D) + 3 * (2 * size * D * CLASSES),
        "tokens": 3 * (2 * size * D * CLASSES),
        "decoder": 3 * (2 * tokens * D * VOCABULARY),
    }[backbone]
    predictor = 0
    if WHOLE_BLOCKS[case].get("predictor") == "mlp":
        # 8 hidden units; the first product passes no gradient to its input.
        predictor = 2 * (2 * tokens * D * 8) + 3 * (2 * tokens * 8)
    by_hand = ends + 3 * (2 * tokens * D) + predictor
    for rows in (positions, chosen):  # a dense block, and one that C rows of each group go through
        by_hand += size * rows * (3 * (2 * D * 4 * D) + 3 * (2 * 2 * D * HIDDEN)) + size * rows**2 * (2 + 5) * (2 * D)
    assert by_hand == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("backbone", ["vit", "tokens", "decoder"])
@pytest.mark.parametrize("case", WHOLE_BLOCKS)
def test_forward_counts_agree_on_whole_blocks(case, backbone):
    arm, batch = build_whole(case, backbone).eval(), text_of(16) if backbone == "decoder" else batch_of(16, backbone)
    arm.predict(batch)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        prediction = arm.predict(batch)
    assert float(prediction.flops.executed) == pytest.approx(counter.get_total_flops(), rel=0.01)
    (routing,) = prediction.routings
    alive = (share_TE(routing.plan, *arm.network.layout(16), kept=True) > 0).view(arm.network.layout(16)).sum(1)
    assert (routing.work.kept, routing.work.pairs_kept) == (int(alive.sum()), int(alive.square().sum()))
    if case.endswith("best"):
        assert arm.flops_per_example() == pytest.approx(float(prediction.flops.model) / 16)


# --- the decoder ---

WINDOW, VOCABULARY = 16, 256
DECODER_CASES = {
    **{
        name: CASES[name] for name in ("dense", "switch", "switch-drops", "topk", "topk-batched", "expert_choice-batch", "hash")
    },
    "top2-dropless": ("top2", {"capacity_factor": None}),
    "top2-leaking": ("top2", {"allow_leak": True}),
    "hash-bigram": ("hash", {"method": "bigram"}),
}


def build_decoder(case, kind="gelu", tied=False):
    name, router = DECODER_CASES[case]
    backbone = {"name": "decoder", "d_model": D, "depth": DEPTH, "heads": HEADS, "hidden": HIDDEN, "tied": tied}
    experts = {"kind": kind} if name == "dense" else {"kind": kind, "count": EXPERTS}
    task = Task("toy", "language", InputSpec("text", (WINDOW,), vocab_size=VOCABULARY), VOCABULARY)
    return make_arm(ArmSpec(name, backbone, experts, router), task, 0)


def text_of(size):
    rows = torch.randint(0, VOCABULARY, (size, WINDOW + 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Batch(rows[:, :-1], rows[:, 1:])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("case", DECODER_CASES)
def test_three_counts_agree_on_the_decoder(case, kind, tied):
    """Causal attention is charged for the whole square of positions, as the counter charges it."""
    size = 8
    arm, batch = build_decoder(case, kind, tied), text_of(size)
    step(arm, batch)
    counter = FlopCounterMode(display=False, custom_mapping=counter_formulas())
    loss = step(arm, batch, counter)
    counted, executed = counter.get_total_flops(), float(loss.flops.executed)
    tokens = size * WINDOW
    rows = DEPTH * tokens if case == "dense" else sum(int(routing.work.executed) for routing in loss.routings)
    router = 0 if DECODER_CASES[case][0] in ("dense", "hash") else 3 * (2 * tokens * D * EXPERTS)
    layers = 3 * (2 * tokens * D * 4 * D) + (2 + 5) * (2 * size * WINDOW * WINDOW * D) + router
    head = 3 * (2 * tokens * D * VOCABULARY)
    by_hand = DEPTH * layers + head + rows * 3 * (2 * (3 if kind == "swiglu" else 2) * D * HIDDEN)
    assert executed == pytest.approx(counted, rel=0.01)
    assert by_hand == pytest.approx(counted, rel=0.01)
    if case == "dense":
        assert executed == counted == by_hand, "nothing is approximated here"


@pytest.mark.parametrize("case", DECODER_CASES)
def test_forward_counts_agree_on_the_decoder(case):
    arm, batch = build_decoder(case).eval(), text_of(16)
    arm.predict(batch)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        prediction = arm.predict(batch)
    assert float(prediction.flops.executed) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert arm.flops_per_example() == pytest.approx(float(prediction.flops.model) / 16)
