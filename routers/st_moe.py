"""ST-MoE: top-2 routing with a z-loss."""

from __future__ import annotations

from dataclasses import replace

from routelab.routers.base import RouterInput, Routing
from routelab.routers.losses import z_loss
from routelab.routers.top2 import Top2


class StMoe(Top2):
    """Top-2 of softmax(x W^T) as in `top2`, with a loss on the logits' size (Zoph et al. 2022, ST-MoE, §3.3, eq. 5).

    The loss `z` = mean(logsumexp(x W^T)^2) over real tokens keeps the logits small, where rounding changes choices least.

    Options: `second_policy` ("random"), as in `top2`.
    Losses: `balance` on first choices (weight 0.01), `z` (weight 0.001). Capacity factor 1.25 in training, first choices
    served before second ones.

    Departures: the paper evaluates at 2.0; here evaluation is dropless unless `eval_capacity_factor` is set, so that
    metrics do not depend on the batch size. Capacity counts both choices (`routelab.routers.capacity`); Mesh TensorFlow, which the
    paper builds on, leaves k out, so that its 1.25 is `capacity_factor=0.625`. The random second choice is GShard's; the
    paper's has a threshold (§3.4 names a fifth of the first's probability).

    Parameters: `weight` (E, D). As in `top2`, capacity lets **a later token push out an earlier one**; without capacity
    causal and not batch-coupled.
    """

    loss_weights = {"balance": 1e-2, "z": 1e-3}
    capacity_factor = 1.25
    published = ()  # GShard's are not its own

    def forward(self, inputs: RouterInput) -> Routing:
        routing = super().forward(inputs)
        assert routing.logits is not None
        return replace(routing, losses={**routing.losses, "z": z_loss(routing.logits, inputs.mask_T)})
