"""Hash routing: a fixed function of the token decides, nothing is learned.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from routelab.core.flops import Cost, matmul
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.embeddings import read_embeddings
from routelab.routers.plans import TopK

Method = Literal["random", "balanced", "bigram", "previous", "position", "dispersed", "clusters", "projection"]
METHODS: tuple[str, ...] = get_args(Method)
CLUSTERED: tuple[str, ...] = ("clusters", "dispersed")
"""Methods that look at token embeddings."""
_BITS = 12
_POSITIONS = 4096


class Hash(Router):
    """One expert per token from a fixed hash, with weight 1 (Roller et al. 2021, Hash Layers).

    Option `method`:

    - "random" (default where there are token ids): a table drawn once over the V ids.
    - "balanced": greedy bin packing of the ids by their training frequency, so that every expert gets an equal share.
    - "bigram": a hash of the previous and the current id. "previous": the table, applied to the previous id.
    - "position": a table over 4096 positions, and over again, which ignores the token.
    - "clusters": k-means of the token embeddings, one cluster per expert. "dispersed": each cluster spread over all
      experts. The paper takes the embeddings of a trained model: bring such a table with `embeddings`, the path of a
      .npy, .pt or .safetensors file that holds one matrix (V, any number of features). Without it they are the
      backbone's own **at initialisation**, in which similar tokens are not yet near each other.
    - "projection" (default where there are no ids; not in the paper): the signs of 12 fixed random projections of x index
      a balanced table. Unlike the id tables it sees x, which drifts while the layers below learn.

    `vocab_size` (V) is offered by the data. Tables and clusters follow the seed. No parameter, no gradient, no loss.
    Left out: the paper's hash of the next token, an oracle, and its layers of several hashes.
    Causal, not batch-coupled.
    """

    table: Tensor
    projection: Tensor

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        method: Method | None = None,
        vocab_size: int | None = None,
        embeddings: str | None = None,
    ) -> None:
        super().__init__(d_model, num_experts)
        if method is None:
            method = "random" if vocab_size else "projection"
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
        if not vocab_size and method not in ("projection", "position"):
            raise ValueError(
                f"method {method!r} needs token ids, which this data does not have; without ids use 'projection' or 'position'"
            )
        if embeddings is not None and method not in CLUSTERED:
            raise ValueError(f"embeddings is only for method {' and '.join(map(repr, CLUSTERED))}; the method is {method!r}")
        if vocab_size and method in CLUSTERED and vocab_size < num_experts:
            raise ValueError(f"method {method!r} needs a vocabulary of at least the {num_experts} experts; it has {vocab_size}")
        self.method, self.vocab_size = method, vocab_size
        self.brought = None if embeddings is None else read_embeddings(embeddings, vocab_size)
        self.cluster_seed = 0
        size = {"projection": 2**_BITS, "position": _POSITIONS}.get(method, vocab_size or 0)
        self.register_buffer("table", torch.arange(size) % num_experts)
        self.register_buffer("projection", torch.zeros(d_model, _BITS if method == "projection" else 0))

    @property
    def per_token(self) -> bool:
        return self.method not in ("bigram", "previous", "position")

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        size = self.table.numel()
        if self.method in ("projection", "position"):
            drawn = torch.randperm(size, generator=generator("table")) % self.num_experts
        else:
            drawn = torch.randint(0, self.num_experts, (size,), generator=generator("table"))
        self.table.copy_(drawn)
        self.projection.copy_(torch.randn(self.projection.shape, generator=generator("projection")))
        self.cluster_seed = int(torch.randint(0, 2**31 - 1, (), generator=generator("clusters")))

    @property
    def needs(self) -> tuple[str, ...]:
        if self.method == "balanced":
            return ("token_counts",)
        return ("embeddings",) if self.method in CLUSTERED and self.brought is None else ()

    def calibrate(self, *, token_counts: Tensor | None = None, embeddings: Tensor | None = None) -> None:
        if self.method == "balanced":
            if token_counts is None:
                raise ValueError("method 'balanced' needs the training frequencies of the tokens")
            self.table.copy_(balanced_table(token_counts, self.num_experts))
        elif self.method in CLUSTERED:
            table_VD = embeddings if self.brought is None else self.brought
            if table_VD is None:
                raise ValueError(f"method {self.method!r} needs token embeddings")
            if table_VD.ndim != 2 or table_VD.shape[0] != self.vocab_size:
                raise ValueError(
                    f"the embeddings have shape {tuple(table_VD.shape)}; they must have {self.vocab_size} rows, one for each id"
                )
            cluster = cluster_table(table_VD, self.num_experts, self.cluster_seed)
            self.table.copy_(cluster if self.method == "clusters" else dispersed_table(cluster, self.num_experts))

    def forward(self, inputs: RouterInput) -> Routing:
        expert_GS = self._expert(inputs)
        plan = TopK(expert_GS.reshape(-1, 1), inputs.x.new_ones(expert_GS.numel(), 1), self.num_experts)
        return Routing(plan)

    def _expert(self, inputs: RouterInput) -> Tensor:
        groups, positions, _ = inputs.x.shape
        if self.method == "projection":
            sign = (inputs.x @ self.projection) > 0
            power = 2 ** torch.arange(_BITS, device=sign.device)
            return self.table[(sign * power).sum(-1)]
        if self.method == "position":
            here = torch.arange(positions, device=inputs.x.device) % _POSITIONS
            return self.table[here].expand(groups, positions)
        ids = inputs.token_ids
        if ids is None:
            raise ValueError(f"hash method {self.method!r} needs token_ids; without ids use 'projection' or 'position'")
        if self.method in ("previous", "bigram"):
            # The first token has no predecessor and counts as following id 0.
            before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)
            if self.method == "previous":
                return self.table[before]
            return mix(before * (self.vocab_size or 1) + ids) % self.num_experts
        return self.table[ids]

    def nominal_rows(self, groups: int, positions: int) -> float:
        return float(groups * positions)

    def cost(self, groups: int, positions: int) -> Cost:
        return Cost(matmul(groups * positions, self.d_model, self.projection.shape[1]).forward, 0.0)


def balanced_table(token_counts: Tensor, num_experts: int) -> Tensor:
    """Greedy bin packing: ids from the most frequent on, each to the expert with the least load so far. (V,) -> (V,)."""
    load = torch.zeros(num_experts, dtype=torch.float64)
    table = torch.empty(token_counts.numel(), dtype=torch.int64)
    for token in torch.argsort(token_counts.cpu(), descending=True, stable=True).tolist():
        expert = int(load.argmin())
        table[token] = expert
        # An id that never occurred still weighs a little, so that unseen ids spread out too.
        load[expert] += float(token_counts[token]) or 1e-6
    return table


def cluster_table(embeddings: Tensor, num_experts: int, seed: int = 0) -> Tensor:
    """k-means with one cluster per expert. (V, D) -> (V,), a function of the embeddings and the seed."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # Threads add up their parts in the order in which they finish, and a tie may then fall either way.
    with threadpool_limits(1):
        found = KMeans(num_experts, n_init=4, random_state=seed).fit_predict(embeddings.detach().cpu().double().numpy())
    return torch.from_numpy(found).long()


def dispersed_table(cluster: Tensor, num_experts: int) -> Tensor:
    """Spread every cluster over all experts in turn, so that similar tokens part. (V,) -> (V,)."""
    table = torch.empty_like(cluster)
    order = torch.argsort(cluster, stable=True)
    table[order] = torch.arange(cluster.numel()) % num_experts
    return table


def mix(value: Tensor) -> Tensor:
    """A fixed integer hash (xorshift-multiply on 31 bits): neighbouring inputs land far apart. int64 -> int64 >= 0."""
    for _ in range(2):
        value = ((value >> 15) ^ value) * 0x2C1B3C6D % 0x7FFFFFFF
    return (value >> 12) ^ value
