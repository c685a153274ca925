"""A narrower space for experts to work in, shared by all of a layer (LatentMoE).

Axes: D features, L latent features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from routelab.core.flops import Cost, matmul
from routelab.experts.feed_forward import check_sizes, draw
from routelab.routers.base import fresh


class Latent(nn.Module):
    """Two projections around the experts: `down` (D, L) before any row is gathered, `up` (L, D) after a token's rows are
    summed. Both start as feed-forward weights do, at N(0, 1 / fan in). No biases, no norm and no activation.

    After NVIDIA 2026 (LatentMoE, arXiv:2601.18089; Nemotron 3 Super has D = 4096, L = 1024). The paper's text was not at hand:
    what is projected when is read off Megatron-LM (pull request 2296), where router and shared experts see all D features.
    """

    def __init__(self, d_model: int, latent_dim: int) -> None:
        super().__init__()
        check_sizes(d_model=d_model, latent_dim=latent_dim)
        if latent_dim > d_model:
            raise ValueError(f"latent_dim is {latent_dim}; it must be at most the {d_model} features, or null for none")
        self.d_model, self.latent_dim = d_model, latent_dim
        self.down, self.up = nn.Parameter(torch.zeros(d_model, latent_dim)), nn.Parameter(torch.zeros(latent_dim, d_model))
        if not self.down.is_meta:
            self.init_parameters(fresh)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Draw both as `routelab.experts.feed_forward.draw` does."""
        for name, parameter in self.named_parameters(recurse=False):
            draw(parameter, name, generator(name))

    def enter(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., L)."""
        return x @ self.down.to(x.dtype)

    def leave(self, x: Tensor) -> Tensor:
        """(..., L) -> (..., D)."""
        return x @ self.up.to(x.dtype)

    def cost(self, tokens: int) -> Cost:
        """FLOPs of both projections of `tokens` tokens."""
        return matmul(tokens, self.d_model, self.latent_dim) + matmul(tokens, self.latent_dim, self.d_model)
