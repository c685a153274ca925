"""A published architecture as data, and its parameters, FLOPs and cache in closed form.

Axes: L layers, D features, H hidden width, E experts, k choices per token, V vocabulary, n context.

A multiply-accumulate is 2 FLOPs; only products count, as in `routelab.core.flops`. So a token costs 2 FLOPs for every matrix
element that it meets, and attention's two products with the positions it sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol

MATRICES = {"relu": 2, "gelu": 2, "swiglu": 3, "clamped_swiglu": 3}
"""D x H weight matrices of one feed-forward, by expert kind."""


@dataclass(frozen=True)
class Parts:
    """Parameters by what they do. vectors: norms, biases and attention sinks, which take part in no product; position: tables
    of relative positions, which are looked up as the embedding is. A tied output is counted in the embedding alone."""

    embedding: int = 0
    head: int = 0
    attention: int = 0
    router: int = 0
    experts: int = 0
    shared: int = 0
    dense: int = 0
    vectors: int = 0
    position: int = 0

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(Parts)))

    def __mul__(self, times: int) -> Parts:
        return Parts(*(getattr(self, part.name) * times for part in fields(Parts)))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, part.name) for part in fields(Parts))

    @property
    def linear(self) -> int:
        """Matrices of attention and feed-forwards: what low-precision formats store."""
        return self.attention + self.experts + self.shared + self.dense


class Attention(Protocol):
    """What one attention layer holds and costs."""

    @property
    def heads(self) -> int:
        """Query heads."""

    def parts(self, d_model: int) -> Parts:
        """Parameters of one layer."""

    @property
    def pair_flops(self) -> int:
        """FLOPs of one query with one position: its score, and its share of the mixture."""

    @property
    def cached(self) -> int:
        """Numbers that one position keeps in the cache."""


@dataclass(frozen=True)
class GroupedAttention:
    """Grouped-query attention (Ainslie et al. 2023); with as many key-value heads as heads, multi-head attention.

    bias: all four projections have one. qk_norm: RMS norms of queries and keys, over each head ("head", Qwen3) or over all
    heads at once ("all", OLMoE). sinks: one learned score per head (gpt-oss).
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    qk_norm: Literal["head", "all"] | None = None
    sinks: bool = False

    def parts(self, d_model: int) -> Parts:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        vectors = (query + 2 * key + d_model) * self.bias + self.heads * self.sinks
        vectors += {"head": 2 * self.head_dim, "all": query + key, None: 0}[self.qk_norm]
        return Parts(attention=d_model * (2 * query + 2 * key), vectors=vectors)

    @property
    def pair_flops(self) -> int:
        return 2 * self.heads * 2 * self.head_dim

    @property
    def cached(self) -> int:
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2): queries through `query_rank`, keys and values through
    `kv_rank`, each with an RMS norm, and `rope` features of a key that all heads share.

    FLOPs are those of training and prefill, where keys and values are expanded for every head; the cache holds the latent
    alone.
    """

    heads: int
    query_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int

    def parts(self, d_model: int) -> Parts:
        matrices = d_model * self.query_rank + self.query_rank * self.heads * (self.nope + self.rope)
        matrices += d_model * (self.kv_rank + self.rope) + self.kv_rank * self.heads * (self.nope + self.value)
        matrices += self.heads * self.value * d_model
        return Parts(attention=matrices, vectors=self.query_rank + self.kv_rank)

    @property
    def pair_flops(self) -> int:
        return 2 * self.heads * (self.nope + self.rope + self.value)

    @property
    def cached(self) -> int:
        return self.kv_rank + self.rope


@dataclass(frozen=True)
class Mixture:
    """The routed feed-forward. router, options: the name and options of the router here that chooses alike; kind: its experts'.

    k: experts per token. bias: projections have one. router_bias: the router's logits have a learned one. shared: experts of
    the same width that take every token. buffers: E numbers that are no parameters, as DeepSeek-V3's biases.
    """

    router: str
    options: Mapping[str, int | float | bool]
    experts: int
    k: int
    hidden: int
    kind: str = "swiglu"
    bias: bool = False
    router_bias: bool = False
    shared: int = 0
    buffers: bool = False

    def parts(self, d_model: int, met: int) -> Parts:
        """Parameters of one layer, with `met` of its experts."""
        matrices = MATRICES[self.kind]
        expert = matrices * d_model * self.hidden
        biases = ((matrices - 1) * self.hidden + d_model) * self.bias
        return Parts(
            router=self.experts * d_model,
            experts=met * expert,
            shared=self.shared * expert,
            vectors=(met + self.shared) * biases + self.experts * self.router_bias,
        )

    def words(self) -> list[str]:
        """The `key=value` words of a configuration that make this layer, at the model's width."""
        options = [f"router.{name}={str(value).lower()}" for name, value in self.options.items()]
        experts = {"count": self.experts, "hidden": self.hidden, "kind": self.kind, "bias": self.bias, "shared": self.shared}
        return [f"arm={self.router}", *options, *(f"experts.{name}={str(value).lower()}" for name, value in experts.items())]


@dataclass(frozen=True)
class Stack:
    """L pre-norm layers of attention and feed-forward, and a last norm.

    The first `dense_first` layers are dense; of the rest every `moe_every`-th is routed, counted from the end of each run of
    n. window: in all but every `full_every`-th layer a token sees at most that many positions. cross: a second attention, to
    an encoder's output. position_buckets: a table of relative positions for each head, in the first layer only (T5).
    """

    layers: int
    moe_every: int = 1
    dense_first: int = 0
    window: int | None = None
    full_every: int = 1
    cross: bool = False
    position_buckets: int = 0

    @property
    def routed(self) -> int:
        """Layers with a mixture."""
        return (self.layers - self.dense_first) // self.moe_every

    def seen(self, context: int) -> int:
        """Positions that a token sees with `context` before and including it, summed over layers and their attentions."""
        full = self.layers if self.window is None else self.layers // self.full_every
        windowed = (self.layers - full) * min(context, self.window or context)
        return full * context + windowed + self.layers * context * self.cross


@dataclass(frozen=True)
class Preset:
    """A published model. title: its name and who published it. stacks: the decoder, or encoder and decoder.

    dense_hidden: width of the feed-forward in layers without a mixture. tied: the output is the embedding's transpose.
    """

    name: str
    title: str
    d_model: int
    vocab: int
    attention: Attention
    mixture: Mixture
    stacks: tuple[Stack, ...]
    dense_hidden: int = 0
    tied: bool = False
    note: str = ""

    def parts(self, met: int | None = None) -> Parts:
        """Parameters, with `met` experts in each routed layer; None: all."""
        met = self.mixture.experts if met is None else met
        whole = Parts(embedding=self.vocab * self.d_model, head=0 if self.tied else self.vocab * self.d_model)
        attention, norm = self.attention.parts(self.d_model), Parts(vectors=self.d_model)
        dense = Parts(dense=MATRICES[self.mixture.kind] * self.d_model * self.dense_hidden)
        for stack in self.stacks:
            whole += (attention + norm) * (stack.layers * (1 + stack.cross)) + norm * (stack.layers + 1)
            whole += self.mixture.parts(self.d_model, met) * stack.routed + dense * (stack.layers - stack.routed)
            if stack.position_buckets:
                whole += Parts(position=stack.position_buckets * self.attention.heads)
        return whole

    @property
    def active(self) -> Parts:
        """Parameters that one token meets, everything counted: all but the experts that it does not choose."""
        return self.parts(self.mixture.k)

    @property
    def active_without_embedding(self) -> int:
        """The same without the input embedding, of which a token reads one row; a tied table stays, as it is the output."""
        return self.active.total - (0 if self.tied else self.active.embedding)

    @property
    def buffers(self) -> int:
        """Numbers that training moves without a gradient."""
        return self.mixture.experts * sum(stack.routed for stack in self.stacks) * self.mixture.buffers

    def attention_flops(self, context: int) -> int:
        """Forward FLOPs of attention's products of positions with positions, for a token that sees `context` of them.

        As if every token of a sequence saw `context` positions, which is the square that published counts charge; in windowed
        layers it sees at most the window.
        """
        return self.attention.pair_flops * sum(stack.seen(context) for stack in self.stacks)

    def flops(self, context: int) -> int:
        """Forward FLOPs per token at `context` positions; with an encoder, of one source and one target token together."""
        active = self.active
        head = active.embedding if self.tied else active.head
        return 2 * (active.linear + active.router + head) + self.attention_flops(context)

    def cached(self, context: int) -> int:
        """Numbers in the key-value cache at `context` positions: windowed layers keep a window, an encoder's none but what its
        decoder reads."""
        return self.attention.cached * self.stacks[-1].seen(context)

    @property
    def cached_per_token(self) -> int:
        """Numbers that one more position adds while every window has room."""
        return self.cached(1)

    @property
    def summary(self) -> str:
        """One line: the title, the total and the active parameters."""
        return f"{self.title}: {self.parts().total:,} parameters, {self.active.total:,} active"

    @property
    def words(self) -> list[str]:
        """The `key=value` words of `train` and `compare` that make this model's mixture layer."""
        return [*self.mixture.words(), f"backbone.d_model={self.d_model}", f"backbone.moe_every={self.stacks[-1].moe_every}"]
