"""Presets against transformers (whole models on the meta device, small ones through torch's FLOP counter), against the
published counts, and against a mixture layer of ours made from the words that they name."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from routelab.backbones.base import Slot
from routelab.baselines.moe_arm import Routed
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.experts.feed_forward import KINDS, parameter_shapes
from routelab.presets import PRESETS
from routelab.presets.architecture import MATRICES, GroupedAttention, LatentAttention, Parts, Stack
from routelab.presets.precision import PRECISIONS, precision

# Total, active with everything counted: routing.md §7 of the project's notes, from the published configurations.
COUNTED = {
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248),
    "mixtral-8x22b": (140_620_634_112, 39_152_031_744),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912),
    "deepseek-v3": (671_026_404_352, 37_552_282_624),
    "deepseekmoe-16b": (16_375_728_128, 2_828_650_496),
    "llama-4-scout": (107_769_861_120, 17_172_894_720),
    "llama-4-maverick": (400_711_848_960, 17_184_691_200),
    "switch-base-8": (619_339_008, 222_977_280),
    "switch-base-16": (1_072_397_568, 223_051_008),
    "switch-base-32": (1_978_514_688, 223_198_464),
    "switch-base-64": (3_790_748_928, 223_493_376),
    "switch-base-128": (7_415_217_408, 224_083_200),
    "switch-base-256": (14_664_154_368, 225_262_848),
}


def model_of(preset):
    """The class in transformers, and its configuration in the preset's sizes."""
    transformers = pytest.importorskip("transformers")
    mixture, attention, stack = preset.mixture, preset.attention, preset.stacks[-1]
    common = {"vocab_size": preset.vocab, "hidden_size": preset.d_model, "num_hidden_layers": stack.layers, "pad_token_id": 0}
    common |= {"num_attention_heads": attention.heads, "num_experts_per_tok": mixture.k, "tie_word_embeddings": preset.tied}
    if isinstance(attention, GroupedAttention):
        common |= {"num_key_value_heads": attention.kv_heads, "head_dim": attention.head_dim}
    name, special = preset.name.split("-")[0], {}
    if name == "mixtral":
        kind, special = "Mixtral", {"intermediate_size": mixture.hidden, "num_local_experts": mixture.experts}
    elif name == "olmoe":
        kind, special = "Olmoe", {"intermediate_size": mixture.hidden, "num_experts": mixture.experts}
    elif name == "qwen3":
        kind, special = "Qwen3Moe", {"moe_intermediate_size": mixture.hidden, "num_experts": mixture.experts}
    elif name == "gpt":
        kind, special = "GptOss", {"intermediate_size": mixture.hidden, "num_local_experts": mixture.experts}
    elif name == "llama":
        kind, special = "Llama4Text", {"intermediate_size": mixture.hidden, "intermediate_size_mlp": preset.dense_hidden}
        special |= {"num_local_experts": mixture.experts, "interleave_moe_layer_step": stack.moe_every}
    elif name in ("deepseek", "deepseekmoe"):
        special = {"intermediate_size": preset.dense_hidden, "moe_intermediate_size": mixture.hidden}
        special |= {
            "n_routed_experts": mixture.experts,
            "n_shared_experts": mixture.shared,
            "first_k_dense_replace": stack.dense_first,
        }
        special |= {"n_group": mixture.options.get("n_group", 1), "topk_group": mixture.options.get("topk_group", 1)}
        # DeepSeekMoE's own class is not in transformers; GLM-4 MoE without its biases and norms has the same parts.
        kind = "DeepseekV3" if name == "deepseek" else "Glm4Moe"
        if isinstance(attention, LatentAttention):
            special |= {"q_lora_rank": attention.query_rank, "kv_lora_rank": attention.kv_rank, "v_head_dim": attention.value}
            special |= {"qk_nope_head_dim": attention.nope, "qk_rope_head_dim": attention.rope}
            special["num_key_value_heads"] = attention.heads
        else:
            special |= {"attention_bias": False, "use_qk_norm": False}
    else:
        kind = "SwitchTransformers"
        common = {
            "vocab_size": preset.vocab,
            "d_model": preset.d_model,
            "d_kv": attention.head_dim,
            "num_heads": attention.heads,
        }
        special = {"num_layers": stack.layers, "num_decoder_layers": stack.layers, "d_ff": mixture.hidden}
        special |= {
            "num_sparse_encoder_layers": stack.routed,
            "num_sparse_decoder_layers": stack.routed,
            "num_experts": mixture.experts,
        }
    model = {"Llama4Text": "Llama4ForCausalLM", "SwitchTransformers": "SwitchTransformersForConditionalGeneration"}.get(
        kind, f"{kind}ForCausalLM"
    )
    config = getattr(transformers, f"{kind}Config")(**common, **special)
    config._attn_implementation = config._experts_implementation = "eager"
    return getattr(transformers, model), config  # fmt: skip


def part_of(name, parameter):
    """What a parameter of transformers does, by its name."""
    names = name.split(".")
    rules = {
        "position": "relative_attention_bias" in names,
        "embedding": names[-2] in ("embed_tokens", "shared"),
        "head": names[0] == "lm_head",
        "vectors": parameter.ndim == 1 or name.endswith("_bias"),
        "shared": bool({"shared_experts", "shared_expert"} & set(names)),
        "experts": "experts" in names,
        "router": names[-2] in ("gate", "router", "classifier"),
        "attention": bool({"self_attn", "SelfAttention", "EncDecAttention"} & set(names)),
    }
    return next((part for part, holds in rules.items() if holds), "dense")


@pytest.mark.parametrize("name", PRESETS)
def test_every_part_is_that_of_transformers(name):
    model, config = model_of(PRESETS[name])
    with torch.device("meta"):
        whole = model(config)
    found = dict.fromkeys(vars(Parts()), 0)
    for each, parameter in whole.named_parameters():
        found[part_of(each, parameter)] += parameter.numel()
    assert Parts(**found) == PRESETS[name].parts()
    if name == "deepseek-v3":
        biases = sum(buffer.numel() for each, buffer in whole.named_buffers() if each.endswith("e_score_correction_bias"))
        assert biases == PRESETS[name].buffers == 14_848


def test_totals_and_active_counts_are_the_published_ones():
    assert {name: (each.parts().total, each.active.total) for name, each in PRESETS.items()} == COUNTED
    assert PRESETS["gpt-oss-20b"].active_without_embedding == 3_608_307_264
    assert PRESETS["gpt-oss-120b"].active_without_embedding == 5_132_849_472
    tied = PRESETS["switch-base-8"]
    assert tied.active_without_embedding == tied.active.total, "a tied table is the output as well"


def small(preset):
    """The same architecture with every size cut down; windows stay wider than the context of the test."""
    heads = 4
    if isinstance(preset.attention, LatentAttention):
        attention = LatentAttention(heads, 12, 10, 8, 4, 6)
    else:
        shared = preset.attention.heads == preset.attention.kv_heads
        attention = replace(preset.attention, heads=heads, kv_heads=heads if shared else 2, head_dim=8)
    groups = {"n_group": 4, "topk_group": 2} if "n_group" in preset.mixture.options else {}
    mixture = replace(
        preset.mixture, experts=8, k=min(3, preset.mixture.k), hidden=16, options={**preset.mixture.options, **groups}
    )
    stacks = tuple(replace(stack, layers=4, dense_first=min(1, stack.dense_first)) for stack in preset.stacks)
    # OLMoE's norms in transformers are as wide as the model, which has to be heads x head_dim.
    width, dense = 20 if isinstance(preset.attention, LatentAttention) else 32, 28 if preset.dense_hidden else 0
    return replace(preset, d_model=width, vocab=40, attention=attention, mixture=mixture, stacks=stacks, dense_hidden=dense)


ONE_OF_EACH = [
    "mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3", "deepseekmoe-16b", "llama-4-maverick",
    "switch-base-8",
]  # fmt: skip


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_flops_are_those_that_torch_counts(name):
    preset, context = small(PRESETS[name]), 8
    if name.startswith("switch"):
        preset = replace(preset, dense_hidden=preset.mixture.hidden)
    model, config = model_of(preset)
    ids = torch.arange(context).unsqueeze(0)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if len(preset.stacks) > 1 else {})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(config).eval()(**inputs)
    modules = counter.get_flop_counts()
    # Angles of rotary embeddings are a product in transformers; here they are a table.
    angles = sum(sum(flops.values()) for each, flops in modules.items() if each.endswith("rotary_emb"))
    if name.startswith("llama"):
        # Its experts in transformers all run on every token.
        preset = replace(preset, mixture=replace(preset.mixture, k=preset.mixture.experts))
    assert counter.get_total_flops() - angles == context * preset.flops(context)


@pytest.mark.parametrize("name", PRESETS)
def test_the_named_words_make_its_layer(name):
    preset = PRESETS[name]
    config = resolve(preset.words).config
    arm = Routed(arm_choices(config, [config.arm])[0].spec)
    arm.task = SimpleNamespace(causal=True)
    every, tokens = preset.stacks[-1].moe_every, 4
    with torch.device("meta"):
        layer = arm.fill(Slot(every - 1, config.backbone["d_model"], tokens))
    expected = preset.mixture.parts(preset.d_model, preset.mixture.experts)
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected.total
    assert layer.router.weight.numel() == expected.router
    assert (
        sum(getattr(layer.experts, each).numel() for each in ("up", "gate", "down") if hasattr(layer.experts, each))
        == expected.experts
    )
    assert (
        sum(parameter.numel() for parameter in layer.shared.parameters()) == expected.shared
        if layer.shared
        else not expected.shared
    )
    assert layer.router.nominal_rows(1, tokens) == tokens * preset.mixture.k
    assert layer.experts.row_cost.forward * preset.mixture.experts == 2 * expected.experts
    if preset.buffers:
        assert layer.router.bias.numel() * sum(stack.routed for stack in preset.stacks) == preset.buffers


def test_matrices_are_those_of_the_expert_kinds():
    assert {kind: len(parameter_shapes(KINDS.get(kind), 8, 16, bias=False)) for kind in MATRICES} == MATRICES


def test_windows_and_the_cross_attention_by_hand():
    assert Stack(6, window=4, full_every=3).seen(10) == 2 * 10 + 4 * 4
    assert Stack(6, window=4, full_every=3).seen(3) == 6 * 3
    assert Stack(2, cross=True).seen(5) == 2 * 5 + 2 * 5
    oss = PRESETS["gpt-oss-20b"]
    assert oss.attention_flops(1000) == 12 * (1000 + 128) * 64 * 2 * 64 * 2
    assert oss.cached(1000) == 12 * (1000 + 128) * 2 * 8 * 64


def test_layers_that_are_routed_by_hand():
    assert [Stack(61, dense_first=3).routed, Stack(48, moe_every=2).routed, Stack(12).routed] == [58, 24, 12]


def test_memory_by_hand():
    parts = Parts(embedding=10, attention=20, experts=64, router=2, vectors=5)
    by_hand = {
        "fp32": 101 * 4, "bf16": 101 * 2, "fp16": 101 * 2, "fp8": 84 + 17 * 2, "int8": 84 + 17 * 2,
        # 84 * 4.125 / 8 = 43.3125 and 34, rounded up; 64 * 4.25 / 8 = 34 and 37 * 2.
        "int4": 78, "mxfp4": 34 + 37 * 2,
    }  # fmt: skip
    assert {name: form.weight_bytes(parts) for name, form in PRECISIONS.items()} == by_hand
    assert [precision(name).cache_bytes(10) for name in ("fp32", "bf16", "fp8", "mxfp4")] == [40, 20, 10, 20]


def test_published_memory():
    """The gpt-oss model card states checkpoints of 60.8 and 12.8 GiB; DeepSeek-V2's latent cache is (512 + 64) a layer."""
    stored = [precision("mxfp4").weight_bytes(PRESETS[name].parts()) / 2**30 for name in ("gpt-oss-120b", "gpt-oss-20b")]
    assert [round(size, 1) for size in stored] == [60.8, 12.8]
    assert precision("bf16").cache_bytes(PRESETS["deepseek-v3"].cached_per_token) == 61 * (512 + 64) * 2
