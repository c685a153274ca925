"""DeepSeekMoE: many fine experts chosen by token, and shared ones that are always on."""

from __future__ import annotations

from routelab.routers.topk import TopKRouter


class DeepSeekMoE(TopKRouter):
    """Top-k of softmax(x W^T) with the raw probabilities as weights (Dai et al. 2024, DeepSeekMoE, §3, eq. 9-14).

    The choice is that of `topk` without renormalising. What is new lies around it: experts are many and narrow
    (`experts.count`, `experts.hidden`), and 2 shared ones take every token in an arm, unless `experts.shared` says
    otherwise (the 16B model has 64 routed experts, 6 chosen, and 2 shared).

    Options: `top_k` (2). Loss: `balance` over all k choices, the paper's expert-level loss (weight 0.01, as in its 2B
    model). Departure: the device-level loss is left out, as no expert has a device of its own.
    Parameters: `weight` (E, D). Dropless. Causal, not batch-coupled.
    """

    shared_experts = 2

    def __init__(self, d_model: int, num_experts: int, *, top_k: int = 2) -> None:
        super().__init__(d_model, num_experts, top_k=top_k, renormalize=False)
