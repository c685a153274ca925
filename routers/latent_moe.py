"""Routing to experts that work in a narrower space."""

from __future__ import annotations

from routelab.routers.topk import TopKRouter


class Latent(TopKRouter):
    """`topk` whose experts work on a quarter of the features (NVIDIA 2026, LatentMoE, arXiv:2601.18089; Nemotron 3).

    The router itself is `topk`, on all D features. In an arm its layer projects tokens to `router.latent_dim` features (default
    D // 4), where the experts run and are summed, and back; `routelab.experts.latent` has the equations and the sources. Any other router
    takes `router.latent_dim` too.

    For the paper's form of equal cost, `experts.count` and `top_k` grow by the factor that the features shrink by, with the
    experts' width left as it is; the arm does not do so by itself, as matching sizes `experts.hidden`.

    Options, loss, parameters: those of `topk`. Causal, not batch-coupled.
    """

    latent_ratio = 4
