"""Experts on disk: the outputs are those of memory to the bit, bytes are counted, and no more is held than there is room for."""

import itertools
import weakref

import pytest
import torch

from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.offload import ExpertFile, Offloaded, write_experts
from routelab.routers.build import build_router
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK

D, H, E = 6, 10, 5
PLANS = {"topk": TopK, "relu": Ragged, "expert_choice": PerExpert, "soft": Slots, "dense_gate": Blend}


def layers_of(router="topk", kind="gelu", count=2, bias=False, **options):
    layers = []
    for number in range(count):
        torch.manual_seed(number)
        hidden = None if kind == "linear" else H
        bank = ExpertBank(kind, num_experts=E, d_model=D, d_hidden=hidden, bias=bias)
        with torch.no_grad():
            for parameter in bank.parameters():  # biases and low-rank updates too: at 0 a missing one would not show
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
        chooser = build_router(router, d_model=D, num_experts=E, **options)
        layers.append(MixtureLayer(chooser, bank, kernel="loop").eval())
    return layers


def file_of(layers, folder, whole_model=False, **options):
    write_experts([layer.experts for layer in layers], folder / "experts.safetensors", whole_model=whole_model)
    return ExpertFile(folder / "experts.safetensors", **options)


@torch.no_grad()
def run(layers, x):
    for layer in layers:
        x = x + layer(x)[0]
    return x


def tokens(groups=3, positions=7):
    return torch.randn(groups, positions, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("router", PLANS)
@pytest.mark.parametrize(("kind", "bias"), [("gelu", False), ("swiglu", True), ("linear", True), ("lora", True)])
def test_outputs_are_those_of_memory_to_the_bit(tmp_path, router, kind, bias):
    """For every type of plan, with one expert in memory at a time, with some and with all, and again afterwards."""
    layers = layers_of(router, kind, bias=bias)
    assert isinstance(layers[0](tokens())[1].plan, PLANS[router])
    wanted = run(layers, tokens())
    file = file_of(layers, tmp_path)
    for slots in (1, 3, 2 * E):
        offloaded, before = Offloaded(layers, file, slots), file.bytes_read
        with offloaded.serving():
            for _ in range(2):
                assert torch.equal(run(layers, tokens()), wanted)
        assert file.bytes_read - before == offloaded.misses * file.unit_bytes
        if PLANS[router] in (PerExpert, Slots, Blend):
            # Every layer asks for its five, twice; in memory at first are one, two and all of what is asked for first.
            assert offloaded.misses == {1: 4 * E - 1, 3: 4 * E - 2, 2 * E: 0}[slots]
    assert torch.equal(run(layers, tokens()), wanted), "the layers have their own experts back"
    file.close()


def test_an_empty_batch_and_a_layer_of_padding_read_nothing(tmp_path):
    layers = layers_of(count=1)
    file = file_of(layers, tmp_path)
    offloaded = Offloaded(layers, file, 1)
    with offloaded.serving(), torch.no_grad():
        out, _ = layers[0](tokens(), mask=torch.zeros(3, 7, dtype=torch.bool))
    assert not out.any()
    assert (offloaded.misses, file.bytes_read) == (0, file.unit_bytes), "what the memory starts with, and no more"
    file.close()


def test_a_unit_is_one_piece_of_the_file_and_holds_the_experts_weights(tmp_path):
    layers = layers_of(kind="swiglu", bias=True, count=12)
    for whole_model, size in ((False, 1), (True, 12)):
        file = file_of(layers, tmp_path, whole_model)
        # Three matrices of D x H, biases of H, H and D, in four bytes each.
        assert file.unit_bytes == size * 4 * (3 * D * H + 2 * H + D)
        assert len(file.units) == 12 * E // size
        for layer, expert in ((0, 0), (1, 4), (11, 2)):
            found = file.read(file.unit(layer, expert))
            assert len(found) == size
            for name, value in layers[layer].experts.own_parameters().items():
                assert torch.equal(found[layer][name], value[expert]), name
        assert file.bytes_read == 3 * file.unit_bytes
        file.close()


def test_no_more_than_the_slots_is_in_memory(tmp_path):
    """Also while an expert is being read: counted are all copies that are alive, whoever holds them."""
    layers = layers_of(top_k=3)
    file = file_of(layers, tmp_path)
    for slots in (1, 2, 4):
        alive, most, read = weakref.WeakSet(), [], file.read

        def watched(unit, alive=alive, most=most, read=read):
            most.append(len(alive))
            found = read(unit)
            alive.add(next(iter(next(iter(found.values())).values())).untyped_storage())
            return found

        file.read = watched
        offloaded = Offloaded(layers, file, slots)
        with offloaded.serving():
            run(layers, tokens())
        file.read = read
        assert max(most) == slots - 1, "there is room before the next one comes"
        assert len(alive) == offloaded.resident == slots
    file.close()


def test_while_serving_a_layer_holds_no_experts(tmp_path):
    layers = layers_of(kind="lora")
    file = file_of(layers, tmp_path)
    with Offloaded(layers, file, 1).serving():
        for layer in layers:
            assert all(value.is_meta for value in layer.experts.own_parameters().values())
            assert not layer.experts.up.is_meta, "what experts share stays"
            assert layer.experts.row_cost == layers_of(kind="lora")[0].experts.row_cost
    file.close()


def test_slots_of_each_layer_are_its_own(tmp_path):
    layers = layers_of("dense_gate")
    file = file_of(layers, tmp_path)
    offloaded = Offloaded(layers, file, E, per_layer=True)
    with offloaded.serving():
        run(layers, tokens())
    assert (offloaded.resident, offloaded.misses) == (2 * E, 0)
    file.close()
    file = file_of(layers, tmp_path, whole_model=True)
    with pytest.raises(ValueError, match="experts of all layers are read together, so no layer has slots of its own"):
        Offloaded(layers, file, 1, per_layer=True)
    file.close()


def whole_model_layers():
    """Adapters: one choice per group, made by the first layer."""
    layers = layers_of("sequence", "lora", count=3, whole_model=True)
    for before, layer in itertools.pairwise(layers):
        layer.router = build_router("sequence", d_model=D, num_experts=E, whole_model=True, follows=True)
        layer.follow(before)
    with torch.no_grad():
        layers[0].router.weight.copy_(torch.eye(E, D) * 4)
    return layers


@torch.no_grad()
def test_an_adapter_is_read_once_for_a_sequence(tmp_path):
    """All layers go to one expert, whose weights in all layers are one read."""
    layers = whole_model_layers()
    file = file_of(layers, tmp_path, whole_model=True)
    offloaded = Offloaded(layers, file, 1)
    chosen = []
    with offloaded.serving():
        for expert in (3, 3, 1, 2):
            x = torch.zeros(1, 4, D)
            x[:, :, expert] = 1.0
            for layer in layers:
                out, routing = layer(x)
                assert (routing.plan.expert == expert).all()
                x = x + out
            chosen.append(offloaded.misses)
    assert chosen == [1, 1, 2, 3]
    # r = 8: a (D, r) and b (r, H) of `up`, a (H, r) and b (r, D) of `down`, in three layers.
    assert file.unit_bytes == 3 * 4 * 2 * 8 * (D + H)
    assert file.bytes_read == (1 + 3) * file.unit_bytes, "what the memory starts with, and three"
    file.close()


def test_a_cold_read_is_the_same_read(tmp_path):
    layers = layers_of()
    wanted = run(layers, tokens())
    file = file_of(layers, tmp_path, cold=True)
    with Offloaded(layers, file, 2).serving():
        assert torch.equal(run(layers, tokens()), wanted)
    file.close()


def test_banks_that_differ_are_refused(tmp_path):
    banks = [ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=hidden) for hidden in (8, 12)]
    with pytest.raises(ValueError, match="the experts of the 2 layers differ in number, size or type; they must be alike"):
        write_experts(banks, tmp_path / "experts.safetensors")
