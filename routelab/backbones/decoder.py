"""A causal language model over bytes, or any other small vocabulary.

Axes: B examples, S positions, L positions that are cached already, D features, V vocabulary, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.backbones.attention import Block, Blocks, KeyValues, rotation_of
from routelab.backbones.base import Backbone, FeedForwardFactory, Slot
from routelab.backbones.mixture_of_depths_block import BlockMixture
from routelab.core.flops import Cost, matmul
from routelab.data.task import InputSpec
from routelab.experts.feed_forward import check_sizes
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Routing, truncated_normal_
from routelab.routers.probes.dependence import routes_tokens_alone


class Decoder(Backbone):
    """Causal language model: RMSNorm before each part, rotary positions, no biases (Touvron 2023; Su 2021; Zhang 2019).

    Options: `d_model` (128), `depth` (4), `heads` (4), `tied` (False: the output has a matrix of its own; True: it is the
    embedding, Press and Wolf 2017), `rotary_base` (10,000). A window is a group of tokens, and its ids reach the routers.

    The feed-forward is gelu, and so are experts, unless `experts.kind` says swiglu.
    """

    init_names: ClassVar[Mapping[str, str]] = {"embedding": "embedding", "blocks": "blocks", "norm": "norm", "head": "head"}

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        feed_forward: FeedForwardFactory,
        *,
        d_model: int = 128,
        depth: int = 4,
        heads: int = 4,
        tied: bool = False,
        rotary_base: float = 10_000.0,
    ) -> None:
        super().__init__(inputs, outputs)
        check_sizes(d_model=d_model, depth=depth, heads=heads)
        if inputs.kind != "text" or inputs.vocab_size is None:
            raise ValueError(f"decoder reads text; this data has the kind {inputs.kind!r}")
        if d_model % heads or d_model // heads % 2:
            raise ValueError(f"heads is {heads}; d_model ({d_model}) must be an even multiple of it, for rotary pairs")
        if tied and outputs != inputs.vocab_size:
            raise ValueError(f"tied is true; the {outputs} outputs must then be the vocabulary of {inputs.vocab_size}")
        if not 1 < rotary_base < math.inf:
            raise ValueError(f"rotary_base is {rotary_base}; it must be above 1 and finite")
        self.d_model, self.positions, self.vocab_size = d_model, inputs.shape[0], inputs.vocab_size
        self.rotary_base, self.head_width = rotary_base, d_model // heads
        self.embedding = nn.Parameter(torch.zeros(self.vocab_size, d_model))
        self.blocks = Blocks(
            Block(
                d_model,
                heads,
                feed_forward(Slot(index, d_model, self.positions, self.vocab_size, whole_block=True)),
                causal=True,
                bias=False,
                norm="rms",
            )
            for index in range(depth)
        )
        self.norm = nn.RMSNorm(d_model)
        self.head = None if tied else nn.Parameter(torch.zeros(outputs, d_model))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Embedding and output start at N(0, 0.02); the parts draw their own."""
        truncated_normal_(self.embedding, 0.02, generator("embedding"))
        if self.head is not None:
            truncated_normal_(self.head, 0.02, generator("head"))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, caches: list[KeyValues] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Ids (B, S), of any integer type -> logits (B, S, K).

        caches: one per block, of the L positions before these, extended in place; mask is then (B, L + S).
        """
        ids = x.long()
        before = caches[0].length if caches else 0
        rotation = rotation_of(before, ids.shape[1], self.head_width, self.rotary_base, ids.device)
        embedded = F.embedding(ids, self.embedding)
        hidden, routings = self.blocks(embedded, mask, token_ids=ids, rotation=rotation, caches=caches or ())
        return F.linear(self.norm(hidden), self.embedding if self.head is None else self.head), routings

    def token_embeddings(self) -> Tensor:
        return self.embedding

    def caches(self) -> list[KeyValues]:
        """Empty caches, one per block, for `forward`."""
        return [KeyValues(self.positions) for _ in self.blocks]

    @property
    def cacheable(self) -> bool:
        """Whether one token at a time gives what the whole sequence gives: not for routers that look at other tokens or
        positions (hash by bigram, expert choice), nor under a capacity in evaluation, nor where tokens skip blocks."""
        layers = [block.feed_forward for block in self.blocks.each() if isinstance(block.feed_forward, MixtureLayer)]
        return all(
            not isinstance(layer, BlockMixture) and layer.eval_capacity_factor is None and _routes_alone(layer, self.vocab_size)
            for layer in layers
        )

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Sample `tokens` more ids after `prompt`: (B, L) -> (B, L + tokens), int64. Runs in evaluation mode.

        temperature: 0 takes the most probable id. top_k: sample among that many only. generator: the randomness; on the
        device of the model. cache: False computes the whole context anew for every id, which `cacheable` decides when True.

        The context holds at most S positions: when it is full it is cut to its last S // 2, and grows again.
        """
        if prompt.ndim != 2 or not prompt.shape[1]:
            raise ValueError(f"prompt has the shape {tuple(prompt.shape)}; it must be (B, L) with L of at least 1")
        if temperature < 0 or (top_k is not None and top_k < 1) or tokens < 0:
            raise ValueError(f"temperature={temperature} and tokens={tokens} must be at least 0, top_k={top_k} at least 1")
        was = self.training
        self.eval()
        try:
            return self._sample(prompt.long(), tokens, temperature, top_k, generator, cache and self.cacheable)
        finally:
            self.train(was)

    def _sample(
        self, ids: Tensor, tokens: int, temperature: float, top_k: int | None, generator: torch.Generator | None, cache: bool
    ) -> Tensor:
        begin, caches = max(0, ids.shape[1] - self.positions), self.caches() if cache else None
        fresh = ids[:, begin:]
        for _ in range(tokens):
            if ids.shape[1] - begin > self.positions:
                begin = ids.shape[1] - max(1, self.positions // 2)
                caches, fresh = self.caches() if cache else None, ids[:, begin:]
            logits = self(fresh if cache else ids[:, begin:], None, caches)[0][:, -1].float()
            fresh = draw(logits, temperature, top_k, generator)
            ids = torch.cat([ids, fresh], dim=1)
        return ids

    def cost(self, examples: int) -> Cost:
        """The embedding is a lookup and costs no product."""
        head = matmul(examples * self.positions, self.d_model, self.outputs)
        return self.blocks.cost(examples, self.positions) + head

    def recomputed(self, examples: int) -> float:
        return self.blocks.recomputed(examples, self.positions)


def draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One id from each row: softmax(logits / temperature) over the `top_k` largest. (B, V) -> (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def _routes_alone(layer: MixtureLayer, vocab_size: int) -> bool:
    return routes_tokens_alone(layer.router, vocab_size, next(layer.experts.parameters()).device)
