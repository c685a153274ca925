"""Layers here and the published blocks, with the same weights: outputs to 1e-5, gradients to 1e-4 of the largest, losses too.

`python -m routelab.parity` measures and records; here the bounds are held, and the record is checked against a measurement.
"""

import json
from dataclasses import replace

import pytest
import torch

from routelab.parity.differences import copy_weights, firm
from routelab.parity.parity_record import installed, record
from routelab.parity.reference_case import SMALL, WIDE, Reference, Sizes, layer_of, of_room
from routelab.parity.reference_packages import room_of, soft, st_moe
from routelab.parity.reference_table import REFERENCES
from routelab.parity.reference_transformers import mixtral, switch
from routelab.routers.capacity import capacity
from routelab.routers.router_metadata import FACTS, read
from routelab.routers.router_registry import ROUTERS

OUTPUTS, GRADIENTS, LOSSES = 1e-5, 1e-4, 1e-5
FACTOR = 8
"""How much further apart than recorded another machine's products may be, which add up in another order."""
FLOOR = 1e-6  # a few units in the last place of float32


def available(reference):
    """Skip if the reference's package is missing."""
    if installed(reference.package) is None:
        pytest.skip(f"{reference.package} is not installed; pip install 'routelab[parity]'")


@pytest.fixture(scope="module", params=REFERENCES, ids=lambda reference: reference.name.replace(" ", "-"))
def measured(request):
    """A reference, and how far the layer is from it over all its cases, sizes and seeds."""
    available(request.param)
    return request.param, request.param.distance()


def test_equals_the_published_block(measured):
    _, found = measured
    assert found.outputs <= OUTPUTS
    assert found.gradients <= GRADIENTS
    assert found.losses is None or found.losses <= LOSSES


def test_the_record_holds(measured):
    reference, found = measured
    entry = next(old for old in read()[reference.router]["parity"] if old["reference"] == reference.name)
    assert set(entry) == {"reference", "version", "outputs", "gradients"} | ({"losses"} if found.losses is not None else set())
    for name in set(entry) - {"reference", "version"}:
        assert entry[name] <= {"outputs": OUTPUTS, "gradients": GRADIENTS, "losses": LOSSES}[name]
        assert getattr(found, name) <= max(FACTOR * entry[name], FLOOR), name


def test_every_record_has_a_reference():
    """A figure whose measurement was deleted would be believed for ever."""
    known = {(reference.router, reference.name) for reference in REFERENCES}
    recorded = {(router, old["reference"]) for router, facts in read().items() for old in facts.get("parity", ())}
    assert recorded == known
    assert {router for router, _ in known} <= set(ROUTERS.names())


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name.replace(" ", "-"))
def test_every_case_has_choices_that_matter(reference):
    """More than one expert is used, and under capacity something is dropped: else agreeing would prove little."""
    available(reference)
    for sizes in (SMALL, WIDE):
        for case in reference.cases:
            options = {name: value for name, value in case.items() if name != "training"}
            twin = reference.build(sizes, torch.Generator().manual_seed(0), **options)
            copy_weights(twin)
            twin.layer.train()
            plan = twin.layer(torch.randn(sizes[:3], generator=torch.Generator().manual_seed(1)))[1].plan
            if not hasattr(plan, "expert"):
                continue
            assert len(plan.expert.unique()) > sizes.experts // 2
            assert (plan.keep is not None and not plan.keep.all()) == (
                twin.layer.capacity_factor is not None or case.get("policy") == "random"
            )


def another(build, **changes):
    """The published block of `build`, beside a layer whose router differs from it in one option."""

    def built(sizes, generator, **options):
        twin = build(sizes, generator, **options)
        for name, value in changes.items():
            setattr(twin.layer if hasattr(twin.layer, name) else twin.layer.router, name, value)
        return twin

    return Reference("", "", "", built, sizes=(SMALL,))


@pytest.mark.parametrize(
    ("reference", "what", "options"),
    [
        (another(mixtral, renormalize=False), "outputs", {}),
        (another(mixtral, top_k=3), "outputs", {}),
        (another(switch, priority="probability"), "outputs", {"room": 1}),
        (another(switch, capacity_group="batch"), "outputs", {"room": 1}),
        (another(switch, capacity_factor=None), "outputs", {"room": 1}),
    ],
    ids=["renormalize", "top_k", "priority", "capacity_group", "capacity"],
)
def test_a_different_option_is_seen(reference, what, options):
    """The measurement can fail: one option off, and the bound is missed a thousand times over."""
    pytest.importorskip("transformers")
    assert getattr(reference.one(SMALL, 0, **options), what) > 1000 * OUTPUTS


def test_a_missing_gradient_is_seen():
    """Equal outputs with a router that learns nothing: weights detached."""
    pytest.importorskip("transformers")

    def built(sizes, generator):
        twin = mixtral(sizes, generator)
        whole = twin.layer.router.forward
        twin.layer.router.forward = lambda inputs: detached(whole(inputs))
        return twin

    found = Reference("", "", "", built).one(SMALL, 0)
    assert found.outputs <= OUTPUTS
    assert found.gradients > 0.1


def detached(routing):
    return replace(routing, plan=replace(routing.plan, weight=routing.plan.weight.detach()))


def test_a_loss_in_other_units_is_seen():
    pytest.importorskip("st_moe_pytorch")

    def built(sizes, generator):
        twin = st_moe(sizes, generator)

        def twice(x):
            out, losses = twin.theirs(x)
            return out, {**losses, "z": 2 * losses["z"]}

        return replace(twin, theirs=twice)

    found = Reference("", "", "", built).one(SMALL, 0)
    assert found.outputs <= OUTPUTS
    assert found.losses == pytest.approx(0.5, rel=1e-4)


def test_weights_that_the_layout_forgets_are_an_error():
    pytest.importorskip("transformers")
    twin = mixtral(SMALL, torch.Generator())
    del twin.layout["experts.down"]
    with pytest.raises(KeyError, match="experts.down"):
        copy_weights(twin)


def test_capacity_in_the_dialect_of_mesh_tensorflow():
    """100 tokens, 8 experts, factor 1.25: 15 rows, k left out and rounded down; ours are 32 for two choices."""
    sizes = Sizes(1, 100, 16, 24, 8)
    assert room_of(1.25, sizes) == 15
    assert capacity(1.25, 2, 100, 8) == 32
    for room in (4, 15, 100):
        assert capacity(of_room(sizes, room, 2)["capacity_factor"], 2, 100, 8) == room
    assert room_of(0.1, sizes) == 4
    assert room_of(16.0, sizes) == 100


def test_ties_are_not_firm():
    """A token of zeros has the same logit for every expert, and any small change decides."""
    layer = layer_of("topk", SMALL, "relu", top_k=2)
    torch.manual_seed(0)
    x = torch.randn(2, 5, SMALL.width)
    with torch.no_grad():
        layer.router.weight.normal_()
    assert firm(layer, x)
    x[1, 2] = 0
    assert not firm(layer, x)


def test_both_clamps_of_gpt_oss_are_at_work():
    pytest.importorskip("transformers")
    reference = next(each for each in REFERENCES if each.router == "gpt_oss")
    twin = reference.build(SMALL, torch.Generator().manual_seed(0))
    copy_weights(twin)
    x, bank = torch.randn(3, 12, SMALL.width, generator=torch.Generator().manual_seed(0)), twin.layer.experts
    assert (torch.einsum("gsd,edh->gseh", x, bank.gate) > 7).any()
    assert (torch.einsum("gsd,edh->gseh", x, bank.up).abs() > 7).any()


def test_the_bias_of_deepseek_changes_choices():
    pytest.importorskip("transformers")
    reference = next(each for each in REFERENCES if each.router == "deepseek")
    twin = reference.build(SMALL, torch.Generator().manual_seed(0))
    copy_weights(twin)
    x = torch.randn(3, 12, SMALL.width, generator=torch.Generator().manual_seed(0))
    chosen = twin.layer(x)[1].plan.expert
    twin.layer.router.bias.zero_()
    assert not torch.equal(chosen, twin.layer(x)[1].plan.expert)


def test_the_scale_of_soft_is_copied():
    pytest.importorskip("soft_moe_pytorch")
    twin = soft(SMALL, torch.Generator().manual_seed(0))
    copy_weights(twin)
    assert twin.layer.router.scale.item() == pytest.approx(3.0)


def test_recording_leaves_other_facts_alone(tmp_path):
    path = tmp_path / "router_metadata.json"
    path.write_text(json.dumps({"topk": {"causal": True, "parity": [{"reference": "gone"}]}, "base": {"paper": "Lewis"}}))
    pytest.importorskip("transformers")
    reference = REFERENCES[0]
    found = Reference("topk", reference.name, "transformers", mixtral).one(SMALL, 0)
    for version in ("1", "2"):
        record([(reference, version, found)], path)
    facts = json.loads(path.read_text())
    assert facts["base"] == {"paper": "Lewis"}
    assert facts["topk"]["causal"] is True
    entries = facts["topk"]["parity"]
    assert [entry["reference"] for entry in entries] == [reference.name, "gone"]
    assert entries[0]["version"] == "2"
    assert entries[0]["outputs"] == pytest.approx(found.outputs, rel=0.06)
    assert FACTS.name == "router_metadata.json"
