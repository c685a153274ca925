"""The cases of the golden test: small configurations of every kind of arm, with the names of commit f3c8993.

A configuration is a dict with dotted keys. `key_map.py` translates it for later layouts. A text that starts with "@" is the name
of an earlier case, and stands for the folder of its run.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

COMMON: Config = {
    "seed": 1,
    "budget.steps": 5,
    "trainer.checks": 2,
    "trainer.batch_size": 16,
    "optimizer.lr": 1e-2,
    "tracking.uri": None,
    "experts.count": 4,
}
SIZES: Config = {"backbone.d_model": 16, "backbone.depth": 1, "backbone.hidden": 32}
DIGITS: Config = {"data.name": "digits", "backbone.name": "vit", "backbone.heads": 2, **SIZES}
FLAT: Config = {"data.name": "digits", "backbone.name": "mlp", **SIZES}
TUMOURS: Config = {"data.name": "breast_cancer", "backbone.name": "tokens", "backbone.heads": 2, **SIZES}
VOWELS: Config = {"data.name": "peterson_barney", "backbone.name": "mlp", **SIZES}
FLIGHTS: Config = {"data.name": "flights", "data.rows": 600, "backbone.name": "mlp", **SIZES}
TEXT: Config = {
    "data.name": "domains",
    "data.bytes_per_domain": 8000,
    "data.window": 16,
    "data.domains": ["law", "mathematics"],
    "backbone.name": "decoder",
    "backbone.heads": 2,
    **SIZES,
}
FREE: Config = {"match.on": "none"}

ON_IMAGES = (
    "base", "cosine", "deepseek", "deepseek_moe", "dense_gate", "expert_choice", "gpt_oss", "hash", "hierarchical", "latent",
    "llama4", "mixture_of_depths", "moe_plus_plus", "noisy_topk", "random", "relu", "sequence", "sinkhorn", "soft", "st_moe",
    "switch", "top2", "top_p", "topk",
)  # fmt: skip
ROUTER_OPTIONS: dict[str, Config] = {
    "cosine-top3": {"name": "cosine", "top_k": 3},
    "deepseek-groups": {"name": "deepseek", "n_group": 2, "topk_group": 1, "top_k": 2, "scale": 1.5, "bias_speed": 0.01},
    "expert_choice-batch": {"name": "expert_choice", "across": "batch", "capacity_factor": 1.0},
    "hierarchical-groups": {"name": "hierarchical", "expert_groups": 2, "top_groups": 2, "top_k": 1},
    "mixture_of_depths-mlp": {"name": "mixture_of_depths", "capacity": 0.5, "weight": "sigmoid", "predictor": "mlp"},
    "moe_plus_plus-options": {"name": "moe_plus_plus", "tau": 0.5, "renormalize": True},
    "noisy_topk-quiet": {"name": "noisy_topk", "noise": False},
    "random-blend": {"name": "random", "evaluation": "blend"},
    "random-frozen": {"name": "random", "frozen": True, "top_k": 2},
    "relu-options": {"name": "relu", "top_k": 2, "penalty_start": 1e-3, "penalty_growth": 1.5},
    "sequence-top2": {"name": "sequence", "top_k": 2},
    "sinkhorn-options": {"name": "sinkhorn", "tau": 0.5, "iterations": 20, "top_k": 2},
    "soft-slots": {"name": "soft", "slots_per_expert": 2},
    "switch-scale": {"name": "switch", "init_scale": 0.1, "jitter": 0.0},
    "top2-all": {"name": "top2", "second_policy": "all"},
    "top_p-options": {"name": "top_p", "p": 0.6, "renormalize": True, "nominal_k": 2},
    "topk-options": {"name": "topk", "top_k": 3, "renormalize": False},
}
LAYER_OPTIONS: dict[str, Config] = {
    "capacity-tight": {"name": "switch", "capacity_factor": 0.5, "eval_capacity_factor": 1.0},
    "capacity-none": {"name": "switch", "capacity_factor": None},
    "capacity-batch": {"name": "top2", "capacity_factor": 0.75, "capacity_group": "batch"},
    "capacity-priority": {"name": "top2", "capacity_factor": 0.75, "priority": "probability"},
    "kernel-batched": {"name": "topk", "kernel": "batched"},
    "loss-weights": {"name": "st_moe", "loss_weights": {"balance": 0.1, "z": 0.01}},
    "latent-dim": {"name": "deepseek", "latent_dim": 8},
}
EXPERTS: dict[str, Config] = {
    **{
        f"kind-{kind}": {"name": "topk", "experts.kind": kind}
        for kind in ("relu", "swiglu", "clamped_swiglu", "linear", "lora")
    },
    "rank": {"name": "topk", "experts.kind": "swiglu", "experts.rank": 2, "experts.bias": True},
    "bias": {"name": "topk", "experts.bias": True},
    "shared": {"name": "switch", "experts.shared": 1},
    "width": {"name": "switch", "experts.hidden": 8, "experts.count": 8},
    "zero": {"name": "topk", "experts.zero": 1},
    "copy": {"name": "topk", "experts.copy": 1},
    "constant": {"name": "topk", "experts.constant": 2},
    "zero-compute": {"name": "switch", "experts.zero": 1, "experts.copy": 1, "experts.constant": 1, "capacity_factor": 1.0},
}
ENSEMBLES: dict[str, Config] = {
    "ensemble": {"name": "ensemble", "members": 2},
    "bagging": {"name": "bagging", "members": 2},
    "adaboost": {"name": "adaboost", "members": 2},
    "adaboost-weights": {"name": "adaboost", "members": 2, "resample": False, "shrinkage": 1.0},
    "gradient_boosting": {"name": "gradient_boosting", "members": 2},
    "gradient_boosting-subsample": {"name": "gradient_boosting", "members": 2, "subsample": 0.5, "shrinkage": 0.5},
    "snapshot": {"name": "snapshot", "members": 2},
    "batch_ensemble": {"name": "batch_ensemble", "members": 2},
    "batch_ensemble-normal": {"name": "batch_ensemble", "members": 2, "scaling": "normal"},
    "stacking": {"name": "stacking", "members": 2, "folds": 2},
    "gated_mixture": {"name": "gated_mixture", "members": 2},
    "gated_mixture-network": {"name": "gated_mixture", "members": 2, "gate": "network", "error": "competitive"},
    "gated_mixture-linear": {"name": "gated_mixture", "members": 2, "base": "linear", "error": "coupled"},
    "hierarchical_mixture": {"name": "hierarchical_mixture", "depth": 2},
    "hierarchical_mixture-linear": {"name": "hierarchical_mixture", "depth": 2, "base": "linear"},
}
REFERENCES = ("random_forest", "hist_gradient_boosting", "sk_bagging", "sk_adaboost")
ON_TEXT: dict[str, Any] = {
    "dense": "dense",
    "switch": "switch",
    "topk": "topk",
    "gpt_oss": "gpt_oss",
    "moe_plus_plus": "moe_plus_plus",
    "mixture_of_depths": "mixture_of_depths",
    "expert_choice": {"name": "expert_choice", "across": "batch"},
    **{f"hash-{method}": {"name": "hash", "method": method} for method in
       ("random", "balanced", "bigram", "position", "projection", "clusters", "dispersed", "previous")},
    "sequence": {"name": "sequence", "allow_leak": True},
    "sequence-adapters": {"name": "sequence", "whole_model": True, "allow_leak": True, "experts.kind": "lora"},
    **{name: {"name": name, "members": 2} for name in ("ensemble", "bagging", "snapshot", "batch_ensemble", "gated_mixture")},
    "hierarchical_mixture": {"name": "hierarchical_mixture", "depth": 2},
    **{f"specialists-{combine}": {"name": "specialists", "combine": combine}
       for combine in ("oracle", "posterior", "uniform", "weights", "router", "mix")},
    "specialists-seeded": {"name": "specialists", "combine": "mix", "seed_share": 0.5},
    "specialists-random": {"name": "specialists", "split": "random", "combine": "uniform", "seed_share": 0.5},
    "specialists-none": {"name": "specialists", "split": "none", "combine": "uniform", "seed_share": 0.5},
}  # fmt: skip


def _group(prefix: str, base: Config, arms: dict[str, Any], **more: Any) -> dict[str, Config]:
    return {f"{prefix}/{name}": {**COMMON, **base, **FREE, **more, "arm": arm} for name, arm in arms.items()}


def _one(name: str, base: Config, arm: Any, config: Config) -> dict[str, Config]:
    return {name: {**COMMON, **base, **FREE, **config, "arm": arm}}


TRAINED: dict[str, Config] = {
    **_group("digits", DIGITS, {"dense": "dense"}),
    **_group("router", DIGITS, {name: name for name in ON_IMAGES}),
    **_group("router-option", DIGITS, ROUTER_OPTIONS),
    **_group("layer", DIGITS, LAYER_OPTIONS),
    **_group("experts", DIGITS, EXPERTS),
    **_group("mlp", FLAT, {"dense": "dense", "switch": "switch", "top2": "top2"}),
    **_group("tokens", TUMOURS, {"dense": "dense", "switch": "switch", "soft": "soft"}),
    **_group("ensemble", FLAT, ENSEMBLES),
    **_group("routed-ensemble", FLAT, {name: {"name": name, "members": 2, "base": "switch"} for name in
             ("ensemble", "bagging", "adaboost", "gradient_boosting", "snapshot", "stacking", "gated_mixture")}),
    **_group("vit-ensemble", DIGITS, {name: {"name": name, "members": 2} for name in ("ensemble", "batch_ensemble", "stacking")}),
    **_group("reference", VOWELS, {name: {"name": name, "members": 5} for name in REFERENCES}),
    **_group("reference", VOWELS, {"tree": {"name": "sk_bagging", "members": 1, "bootstrap": False, "depth": 3}}),
    **_group("regression", FLIGHTS, {"dense": "dense", "switch": "switch",
             "soft": {"name": "soft", "allow_leak": True},
             **{name: {"name": name, "members": 2} for name in ("bagging", "adaboost", "gradient_boosting", "gated_mixture")},
             "stacking": {"name": "stacking", "members": 2, "folds": 2},
             **{name: {"name": name, "members": 5} for name in ("random_forest", "hist_gradient_boosting")}}),
    **_group("text", TEXT, ON_TEXT),
    # The two layers of a stack see each other's logits, and every second layer stays dense.
    **_one("depth/moe_plus_plus", DIGITS, "moe_plus_plus", {"backbone.depth": 2}),
    **_one("depth/moe_every", DIGITS, "switch", {"backbone.depth": 2, "backbone.moe_every": 2}),
    **_one("depth/tied", TEXT, "switch", {"backbone.depth": 2, "backbone.tied": True}),
    **_one("depth/sequence", DIGITS, {"name": "sequence", "whole_model": True}, {"backbone.depth": 2}),
    # The loop: micro-batches, clipping, schedules, and the four kinds of budget but seconds.
    **_one("loop/accumulate", DIGITS, "switch", {"trainer.accumulate": 2}),
    **_one("loop/clip", DIGITS, "switch", {"optimizer.clip": 0.1}),
    **_one("loop/clip-members", FLAT, {"name": "bagging", "members": 2}, {"optimizer.clip": 0.1}),
    **_one("loop/no-clip", DIGITS, "switch", {"optimizer.clip": 0.0}),
    **_one("loop/linear", DIGITS, "topk", {"optimizer.schedule": "linear", "optimizer.warmup": 0.4}),
    **_one("loop/constant", DIGITS, "topk", {"optimizer.schedule": "constant", "optimizer.weight_decay": 0.3,
           "optimizer.beta1": 0.8, "optimizer.beta2": 0.9}),
    **_one("loop/flops", DIGITS, {"name": "switch", "capacity_factor": 0.5}, {"budget.steps": None, "budget.flops": 3e6}),
    **_one("loop/epochs", DIGITS, "switch", {"budget.steps": None, "budget.epochs": 0.06}),
    **_one("loop/times", DIGITS, {"name": "switch", "budget.times": 2.0}, {}),
    # Widths that matching finds.
    **_one("match/switch", DIGITS, "switch", {"match.on": "flops_per_example", "backbone.hidden": None}),
    **_one("match/top2-total", DIGITS, "top2", {"match.on": "total_params", "match.tolerance": 0.1}),
    **_one("match/top2-active", DIGITS, "top2", {"match.on": "active_params"}),
    **_one("match/top2-train", DIGITS, "top2", {"match.on": "train_flops"}),
    **_one("match/bagging", FLAT, {"name": "bagging", "members": 2}, {"match.on": "flops_per_example", "backbone.d_model": 32}),
    # Runs that build on runs.
    **_one("on/dense", DIGITS, "dense", {"init.from": "@digits/dense"}),
    **_one("on/upcycled", DIGITS, "topk", {"init.from": "@digits/dense"}),
    **_one("on/upcycled-lora", DIGITS, {"name": "topk", "experts.rank": 2}, {"init.from": "@digits/dense"}),
    **_one("on/mixture", DIGITS, "topk", {"init.from": "@router/topk"}),
    **_one("on/flops", DIGITS, {"name": "topk", "init.from": "@digits/dense", "init.take": "flops"},
           {"budget.steps": None, "budget.flops": 3e6}),
    **_one("on/upcycled-text", TEXT, "switch", {"init.from": "@text/dense"}),
    **_one("on/distilled", DIGITS, {"name": "distilled", "teacher": "@router/topk"}, {}),
    **_one("on/distilled-switch", DIGITS, {"name": "distilled", "teacher": "@digits/dense", "base": "switch",
           "temperature": 3.0, "weight": 0.25}, {}),
    **_one("on/distilled-text", TEXT, {"name": "distilled", "teacher": "@text/switch"}, {}),
}  # fmt: skip
"""Configurations of `train`, by the name of the case."""

_SMALL: Config = {"budget.steps": 12, "trainer.batch_size": 32, "trainer.checks": 2, "workers": 1, "tracking.uri": None}
COMPARED: dict[str, Config] = {
    "verdicts": {
        **DIGITS,
        **_SMALL,
        "experts.count": 4,
        "backbone.hidden": None,
        "arms": ["dense", "switch", "top2", {"name": "bagging", "members": 2}],
        "seeds": 3,
        "optimizer.lr": 1e-2,
        "dense_ladder": [0.5, 2],
        "budget_ladder": [0.5, 1],
        "verdict.pairs": [["switch", "top2"]],
    },
    # A grid, a choice of the learning rate, the intervals of seeds=auto, and domains.
    "tuning": {
        **TEXT,
        **_SMALL,
        **FREE,
        "experts.count": 4,
        "trainer.batch_size": 8,
        "arms": [
            "dense",
            {"name": "switch", "capacity_factor": [1.0, 2.0], "label": "switch-cf{capacity_factor}"},
            {"name": "specialists", "combine": "posterior"},
        ],
        "seeds": "auto",
        "verdict.first": 3,
        "verdict.most": 3,
        "optimizer.lr": [3e-3, 1e-2],
    },
}
"""Configurations of `compare`, by the name of the case. Each starts one worker process, whose imports are most of its cost."""
