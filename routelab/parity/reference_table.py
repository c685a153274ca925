"""Every reference, and the cases in which it is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from routelab.parity import reference_packages as packages
from routelab.parity import reference_transformers as hub
from routelab.parity.reference_case import Reference

BOTH: tuple[Mapping[str, Any], ...] = ({}, {"training": False})
# With these sizes a factor of 2 leaves 4 of 12 positions of the first, and of 33 of the second, to an expert of 8 or 16.
TIGHT: tuple[Mapping[str, Any], ...] = ({}, {"factor": 2.0}, {"factor": 2.0, "training": False}, {"training": False})

REFERENCES: tuple[Reference, ...] = (
    Reference("topk", "transformers Mixtral", "transformers", hub.mixtral, (*BOTH, {"top_k": 3})),
    Reference("topk", "transformers OLMoE", "transformers", hub.olmoe, (*BOTH, {"renormalize": True})),
    Reference("topk", "transformers Qwen3-MoE", "transformers", hub.qwen3, (*BOTH, {"renormalize": False})),
    Reference(
        "switch", "transformers Switch", "transformers", hub.switch,
        ({}, {"room": 2}, {"room": 2, "training": False}, {"room": 1}, {"training": False}),
    ),
    Reference(
        "deepseek", "transformers DeepSeek-V3", "transformers", hub.deepseek_v3,
        (*BOTH, {"n_group": 4, "topk_group": 2}, {"n_group": 2, "topk_group": 1, "scale": 1.0, "n_shared": 2}),
    ),
    Reference("deepseek_moe", "transformers DeepSeek-V2 (greedy)", "transformers", hub.deepseek_v2, (*BOTH, {"top_k": 1})),
    Reference("gpt_oss", "transformers gpt-oss", "transformers", hub.gpt_oss, (*BOTH, {"top_k": 2})),
    Reference("llama4", "transformers Llama-4", "transformers", hub.llama4, BOTH),
    Reference("soft", "soft-moe-pytorch", "soft-moe-pytorch", packages.soft, (*BOTH, {"padded": 4}, {"slots": 1})),
    Reference(
        "top2", "mixture-of-experts", "mixture-of-experts", packages.gshard,
        (*TIGHT, {"policy": "random"}, {"policy": "random", "factor": 2.0}),
    ),
    Reference(
        "top2", "transformers NLLB-MoE router", "transformers", hub.batch_prioritised,
        (*BOTH, {"by_probability": False}, {"room": 2}),
    ),
    Reference("st_moe", "st-moe-pytorch", "st-moe-pytorch", packages.st_moe, TIGHT),
)  # fmt: skip
