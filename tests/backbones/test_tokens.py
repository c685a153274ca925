"""Feature tokens: a row is a group, its numbers and codes are tokens."""

import pytest
import torch

from routelab.backbones.row_head import Row
from routelab.backbones.tokens import Tokens
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task

ROUTED = ("switch", "top2", "topk", "expert_choice", "hash", "soft")
CATEGORIES = (0, 5, 0, 3)
SHAPE = {"name": "tokens", "d_model": 16, "depth": 2, "heads": 2}


def task(kind="regression", categories=CATEGORIES):
    return Task("toy", kind, InputSpec("table", (4,), categories=categories), 1 if kind == "regression" else 3)


def arm_of(name, backbone=SHAPE, given=None, **router):
    return make_arm(ArmSpec(name, backbone, {"count": 4, "hidden": 24} if name != "dense" else {}, router), given or task(), 0)


def rows(size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=generator)
    for place, codes in enumerate(CATEGORIES):
        if codes:
            x[:, place] = torch.randint(1, codes, (size,), generator=generator).float()
    return x


def batch_of(size=12):
    return Batch(rows(size), torch.randn(size, 1, generator=torch.Generator().manual_seed(1)))


def test_tokens_by_hand():
    """x_j * weight_j + bias_j for a number, the code's row of its own feature's table + bias_j for a code."""
    network = arm_of("dense").network
    x, seen = torch.tensor([[2.0, 4.0, -1.0, 1.0]]), []
    network.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(x)
    weight, codes, bias = network.weight, network.row.codes, network.bias
    # Features 0 and 2 are numbers; feature 1 has codes 0 to 4 in rows 0 to 4, feature 3 codes 0 to 2 in rows 5 to 7.
    expected = torch.stack([2 * weight[0] + bias[0], -weight[1] + bias[1], codes[4] + bias[2], codes[5 + 1] + bias[3]])
    torch.testing.assert_close(seen[0][0], expected)


def test_unseen_codes_start_at_nothing():
    network = arm_of("dense").network
    assert network.row.codes.shape == (8, 16)
    assert [bool((row == 0).all()) for row in network.row.codes] == [True, False, False, False, False, True, False, False]


@pytest.mark.parametrize("name", ["dense", *ROUTED])
def test_every_router_is_legal_and_every_parameter_learns(name):
    arm = arm_of(name)
    loss = arm.loss(batch_of(), torch.arange(12))
    loss.task.backward()
    for key, parameter in arm.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    assert arm.leaks is None
    assert arm.eval().predict(batch_of()).outputs.shape == (12, 1)


@pytest.mark.parametrize("name", ["dense", *ROUTED])
def test_rows_do_not_see_each_other_in_evaluation(name):
    arm = arm_of(name).eval()
    whole = arm.predict(batch_of()).outputs
    alone = torch.cat([arm.predict(Batch(rows()[i : i + 1], torch.zeros(1, 1))).outputs for i in range(12)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)


def test_features_see_each_other():
    """Otherwise a code could not change what a number means."""
    network = arm_of("dense").network.eval()
    x = rows(1)
    other = x.clone()
    other[0, 3] = 3 - x[0, 3]  # codes 1 and 2 change places
    bumped, other_bumped = x.clone(), other.clone()
    bumped[0, 0] += 1
    other_bumped[0, 0] += 1
    first, second = (network(b)[0] - network(a)[0] for a, b in ((x, bumped), (other, other_bumped)))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("categories", [(), (0, 0, 0, 0), (9, 9, 9, 9)])
def test_tables_of_one_sort(categories):
    arm = arm_of("switch", given=task("classification", categories))
    x = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(0)).float()
    assert arm.predict(Batch(x, torch.zeros(6, dtype=torch.int64))).outputs.shape == (6, 3)
    assert (arm.network.weight is None) == (categories == (9, 9, 9, 9))
    assert (arm.network.row.codes is None) == (categories != (9, 9, 9, 9))


def test_a_seed_decides_the_start():
    first, same = arm_of("dense").state_dict(), arm_of("topk").state_dict()
    for name in ("weight", "bias", "row.codes", "head.weight"):
        assert torch.equal(first[f"network.{name}"], same[f"network.{name}"])


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (InputSpec("image", (1, 8, 8)), {}, "tokens reads tables; this data has the kind 'image'"),
        (InputSpec("table", (4,)), {"heads": 3}, "heads is 3; it must divide d_model"),
        (InputSpec("table", (4,)), {"depth": 0}, "depth is 0; it must be at least 1"),
        (InputSpec("table", (4,), categories=(0, 0)), {}, "categories has 2 entries; it must have one for each of the 4"),
    ],
)
def test_errors(inputs, options, message):
    given = Task("toy", "classification", inputs, 3)
    with pytest.raises(UsageError, match=message):
        arm_of("dense", {**SHAPE, **options}, given)


def test_a_row_of_numbers_passes_as_it_is():
    x = rows()
    numbers, embedded = Row(InputSpec("table", (4,)), 8)(x)
    assert embedded is None
    assert torch.equal(numbers, x)


def test_signature_of_the_default():
    network = Tokens(InputSpec("table", (4,)), 2, lambda slot: torch.nn.Identity())
    assert (network.d_model, len(network.blocks), network.layout(5)) == (64, 3, (5, 4))
