"""The published models. Sizes are those of the configuration files that were published with the weights."""

from __future__ import annotations

from routelab.core.errors import unknown
from routelab.presets.architecture import GroupedAttention, LatentAttention, Mixture, Preset, Stack


def _mixtral(name: str, title: str, layers: int, d_model: int, heads: int, hidden: int) -> Preset:
    """Jiang et al. 2024, Mixtral of Experts."""
    return Preset(
        name, f"{title} (Mistral AI 2024)", d_model, 32000, GroupedAttention(heads, 8, 128),
        Mixture("topk", {"top_k": 2, "renormalize": True}, 8, 2, hidden), (Stack(layers),),
    )  # fmt: skip


def _qwen3(name: str, title: str, layers: int, d_model: int, heads: int, hidden: int) -> Preset:
    """Yang et al. 2025, Qwen3 Technical Report."""
    return Preset(
        name, f"{title} (Qwen Team 2025)", d_model, 151936, GroupedAttention(heads, 4, 128, qk_norm="head"),
        Mixture("topk", {"top_k": 8, "renormalize": True}, 128, 8, hidden), (Stack(layers),),
    )  # fmt: skip


def _gpt_oss(name: str, layers: int, experts: int) -> Preset:
    """OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card. Every other layer sees 128 positions."""
    return Preset(
        name, f"{name} (OpenAI 2025)", 2880, 201088, GroupedAttention(64, 8, 64, bias=True, sinks=True),
        Mixture("gpt_oss", {"top_k": 4}, experts, 4, 2880, "clamped_swiglu", bias=True, router_bias=True),
        (Stack(layers, window=128, full_every=2),),
    )  # fmt: skip


def _llama4(name: str, title: str, experts: int, moe_every: int) -> Preset:
    """Meta 2025, Llama 4. Three of four layers attend within chunks of 8192 positions."""
    return Preset(
        name, f"{title}, its text model (Meta 2025)", 5120, 202048, GroupedAttention(40, 8, 128),
        Mixture("llama4", {}, experts, 1, 8192, shared=1), (Stack(48, moe_every=moe_every, window=8192, full_every=4),),
        dense_hidden=16384, note="a layer that attends within chunks is charged for a whole chunk",
    )  # fmt: skip


def _switch(experts: int) -> Preset:
    """Fedus, Zoph, Shazeer 2021, Switch Transformers: T5-Base with a mixture in every other layer."""
    half = Stack(12, moe_every=2, position_buckets=32)
    return Preset(
        f"switch-base-{experts}", f"Switch-Base with {experts} experts (Google 2021)", 768, 32128, GroupedAttention(12, 12, 64),
        Mixture("switch", {}, experts, 1, 3072, "relu"),
        (half, Stack(12, moe_every=2, cross=True, position_buckets=32)), dense_hidden=3072, tied=True,
        note="encoder and decoder: a token means one of the source and one of the target, the context is that of each",
    )  # fmt: skip


_ALL = (
    _mixtral("mixtral-8x7b", "Mixtral 8x7B", 32, 4096, 32, 14336),
    _mixtral("mixtral-8x22b", "Mixtral 8x22B", 56, 6144, 48, 16384),
    # Muennighoff et al. 2024, OLMoE.
    Preset(
        "olmoe-1b-7b", "OLMoE-1B-7B (Ai2 2024)", 2048, 50304, GroupedAttention(16, 16, 128, qk_norm="all"),
        Mixture("topk", {"top_k": 8, "renormalize": False}, 64, 8, 1024), (Stack(16),),
    ),
    _qwen3("qwen3-30b-a3b", "Qwen3-30B-A3B", 48, 2048, 32, 768),
    _qwen3("qwen3-235b-a22b", "Qwen3-235B-A22B", 94, 4096, 64, 1536),
    _gpt_oss("gpt-oss-20b", 24, 32),
    _gpt_oss("gpt-oss-120b", 36, 128),
    # DeepSeek-AI 2024, DeepSeek-V3 Technical Report.
    Preset(
        "deepseek-v3", "DeepSeek-V3 (DeepSeek-AI 2024)", 7168, 129280, LatentAttention(128, 1536, 512, 128, 64, 128),
        Mixture("deepseek", {"top_k": 8, "n_group": 8, "topk_group": 4, "scale": 2.5}, 256, 8, 2048, shared=1, buffers=True),
        (Stack(61, dense_first=3),), dense_hidden=18432, note="without the layer for multi-token prediction",
    ),
    # Dai et al. 2024, DeepSeekMoE.
    Preset(
        "deepseekmoe-16b", "DeepSeekMoE-16B (DeepSeek-AI 2024)", 2048, 102400, GroupedAttention(16, 16, 128),
        Mixture("deepseek_moe", {"top_k": 6}, 64, 6, 1408, shared=2), (Stack(28, dense_first=1),), dense_hidden=10944,
    ),
    _llama4("llama-4-scout", "Llama 4 Scout", 16, 1),
    _llama4("llama-4-maverick", "Llama 4 Maverick", 128, 2),
    *(_switch(experts) for experts in (8, 16, 32, 64, 128, 256)),
)  # fmt: skip

PRESETS = {made.name: made for made in _ALL}
"""Name to preset, in the order of the table."""


def preset(name: str) -> Preset:
    """A preset by name; UsageError with the nearest match if there is none."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
