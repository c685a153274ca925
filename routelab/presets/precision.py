"""Number formats of weights and caches, and what they take in memory."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from routelab.core.errors import unknown
from routelab.presets.architecture import Parts


@dataclass(frozen=True)
class Precision:
    """bits: of one stored weight, with its share of a block's scale. of: the weights that are stored so: "all"; the matrices of
    attention and feed-forwards ("linear"); or the routed experts' matrices alone ("experts"). What is left is in bf16. cache:
    bits of a cached number."""

    name: str
    bits: Fraction
    of: Literal["all", "linear", "experts"]
    cache: int
    note: str

    def weight_bytes(self, parts: Parts) -> int:
        """Bytes of the parameters, rounded up."""
        stored = {"all": parts.total, "linear": parts.linear, "experts": parts.experts}[self.of]
        bits = stored * self.bits + (parts.total - stored) * 16
        return int(-(-bits // 8))

    def cache_bytes(self, numbers: int) -> int:
        """Bytes of cached numbers."""
        return numbers * self.cache // 8


_REST = "embedding, output, router, norms and biases in bf16"
PRECISIONS = {
    made.name: made
    for made in (
        Precision("fp32", Fraction(32), "all", 32, "everything in 32 bits"),
        Precision("bf16", Fraction(16), "all", 16, "everything in 16 bits"),
        Precision("fp16", Fraction(16), "all", 16, "everything in 16 bits"),
        Precision("fp8", Fraction(8), "linear", 8, f"matrices and cache in 8 bits, their scales not counted; {_REST}"),
        Precision("int8", Fraction(8), "linear", 8, f"matrices and cache in 8 bits, their scales not counted; {_REST}"),
        Precision("int4", 4 + Fraction(16, 128), "linear", 16, f"matrices in 4 bits, a 16-bit scale per 128; {_REST}; cache in bf16"),
        Precision("mxfp4", 4 + Fraction(8, 32), "experts", 16, "experts' matrices in 4 bits, an 8-bit scale per 32; the rest and the cache in bf16"),
    )
}  # fmt: skip


def precision(name: str) -> Precision:
    """A precision by name; UsageError with the nearest match if there is none."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    return PRECISIONS[name]
