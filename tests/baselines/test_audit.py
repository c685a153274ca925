"""Three counts of the same training step: comparisons per FLOP are worth what this agreement is worth."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.contract import ArmSpec, make_arm
from baselines.task import Batch, Task
from routelab.backbones.contract import InputSpec
from routelab.training.flops import counter_formulas

D, DEPTH, HEADS, PATCH, CLASSES, HIDDEN, EXPERTS = 16, 2, 2, 2, 10, 32, 4
S = (8 // PATCH) ** 2

CASES = {
    "dense": ("dense", {}),
    "switch": ("switch", {}),
    "switch-drops": ("switch", {"capacity_factor": 0.5}),
    "switch-batched": ("switch", {"kernel": "batched"}),
    "top2": ("top2", {}),
    "topk": ("topk", {}),
    "topk-loop": ("topk", {"kernel": "loop"}),
    "topk-fused": ("topk", {"kernel": "fused"}),
    "expert_choice-fused": ("expert_choice", {"kernel": "fused"}),
    "soft-fused": ("soft", {"kernel": "fused"}),
    "topk-batched": ("topk", {"kernel": "batched"}),
    "expert_choice": ("expert_choice", {}),
    "expert_choice-batch": ("expert_choice", {"across": "batch"}),
    "hash": ("hash", {}),
    "soft": ("soft", {}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Products this small gain nothing from threads, and waiting threads on a shared machine cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(case, kind="gelu"):
    name, router = CASES[case]
    backbone = {"d_model": D, "depth": DEPTH, "heads": HEADS, "patch_size": PATCH, "hidden": HIDDEN}
    experts = {"kind": kind} if name == "dense" else {"kind": kind, "count": EXPERTS}
    task = Task("toy", "classification", InputSpec("image", (1, 8, 8)), CLASSES)
    return make_arm(ArmSpec(name, backbone, experts, router), task, 0)


def batch_of(size):
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator))


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


def by_hand(case, batch, rows, matrices):
    """Fixed part + rows x cost of a row, from the shapes alone. A product with gradients for both sides is 3 products."""
    tokens = batch * S
    patch = 2 * (2 * tokens * PATCH**2 * D)  # pixels need no gradient
    projections = 3 * (2 * tokens * D * 4 * D)
    attention = (2 + 5) * (2 * batch * S * S * D)
    head = 3 * (2 * batch * D * CLASSES)
    slots = 3 * (2 * batch * S * S * D)  # as many slots as positions: E * P = S
    router = {
        "dense": 0,
        "hash": 2 * tokens * D * 12,  # forward only
        "soft": slots + 2 * slots,  # the logits, then dispatch and combine
    }.get(CASES[case][0], 3 * (2 * tokens * D * EXPERTS))
    per_row = 3 * (2 * matrices * D * HIDDEN)
    return patch + head + DEPTH * (projections + attention + router) + rows * per_row


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("case", CASES)
def test_three_counts_agree(case, kind):
    size = 8
    arm, batch = build(case, kind), batch_of(size)
    step(arm, batch)  # the first call counts the router's cost by running it
    counter = FlopCounterMode(display=False, custom_mapping=counter_formulas())
    loss = step(arm, batch, counter)
    counted, executed = counter.get_total_flops(), float(loss.flops.executed)
    rows = DEPTH * size * S if case == "dense" else sum(int(routing.work.executed) for routing in loss.routings)
    assert executed == pytest.approx(counted, rel=0.01)
    assert by_hand(case, size, rows, 3 if kind == "swiglu" else 2) == pytest.approx(counted, rel=0.01)
    if case == "dense":
        assert executed == counted, "nothing is approximated here"
    # The experts' share is large enough that a row miscounted by a tenth would show.
    assert rows * 3 * 4 * D * HIDDEN > 0.1 * counted


@pytest.mark.parametrize("case", CASES)
def test_forward_counts_agree(case):
    arm, batch = build(case).eval(), batch_of(8)
    arm.predict(batch)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        prediction = arm.predict(batch)
    assert float(prediction.flops.executed) == pytest.approx(counter.get_total_flops(), rel=0.01)


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
