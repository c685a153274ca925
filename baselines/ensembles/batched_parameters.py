"""Parameters of M networks in the place of one's, so that the network's own code runs all of them at once.

Activations keep the shape that they have in one network, with the examples of all members below each other, or have an axis of
members before them; only what touches a parameter knows that there are M of it. So attention, norms and everything else without
parameters cost what they cost one network with M times the batch, and a product costs a batched product.

Axes: M members, B examples, R rows of a member's activations, D features, I and O features in and out of a product, V a table's
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class Stacked:
    """A parameter's values (M, ...), for a module that takes them for one network's (...), in the operations of `WAYS`.

    Whatever else is done with it raises a TypeError or an AttributeError.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        way = WAYS.get(function)
        return NotImplemented if way is None else way(*args, **(kwargs or {}))

    def __getitem__(self, index: Tensor) -> Tensor:
        return _embedding(index, self)

    def index_select(self, axis: int, index: Tensor) -> Tensor:
        """As `Tensor.index_select`, along the first axis."""
        if axis != 0:
            raise TypeError(f"axis is {axis}; rows of a table are along axis 0")
        return _embedding(index, self)

    def __add__(self, other: Tensor) -> Tensor:
        return _add(other, self)

    def __mul__(self, other: Tensor) -> Tensor:
        return _multiply(other, self)

    __radd__, __rmul__ = __add__, __mul__


def _rows(x: Tensor, values: Tensor) -> Tensor:
    """Activations (M * B, ..., D) or (M, B, ..., D) as (M, R, D)."""
    return x if x.ndim == 3 and len(x) == len(values) else x.reshape(len(values), -1, x.shape[-1])


def _back(rows_MRO: Tensor, x: Tensor) -> Tensor:
    """Rows in the place of those that came from x."""
    return rows_MRO if rows_MRO.shape[:-1] == x.shape[:-1] else rows_MRO.reshape(*x.shape[:-1], -1)


def _linear(x: Tensor, weight: Stacked, bias: Stacked | None = None) -> Tensor:
    """weight (M, O, I), bias (M, O)."""
    rows_MRI, turned_MIO = _rows(x, weight.values), weight.values.transpose(1, 2)
    if bias is None:
        return _back(torch.bmm(rows_MRI, turned_MIO), x)
    return _back(torch.baddbmm(bias.values.unsqueeze(1), rows_MRI, turned_MIO), x)


def _product(x: Tensor, matrix: Stacked) -> Tensor:
    """x @ matrix (M, I, O)."""
    return _back(torch.bmm(_rows(x, matrix.values), matrix.values), x)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Stacked | None = None, bias: Stacked | None = None, eps: float = 1e-5
) -> Tensor:
    out = F.layer_norm(x, shape, None, None, eps)
    if weight is not None and bias is not None:
        rows = _rows(out, weight.values)
        return _back(torch.addcmul(bias.values.unsqueeze(1), rows, weight.values.unsqueeze(1)), x)
    return out if weight is None else _multiply(out, weight)


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Stacked, eps: float | None = None) -> Tensor:
    return _multiply(F.rms_norm(x, shape, None, eps), weight)


def _spread(x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """x (M * B, ...) as (M, B, ...), and values (M, ...) with axes of 1, so that they meet as x and one member's values do.

    x (M, B, ...) becomes (M, 1, B, ...), which comes to the same.
    """
    x = x.unflatten(0, (len(values), -1))
    if values.ndim > x.ndim - 1:
        raise TypeError("a parameter with as many axes as the activations would have one for the examples")
    return x, values.view(len(values), *[1] * (x.ndim - values.ndim), *values.shape[1:])


def _add(x: Tensor, term: Stacked) -> Tensor:
    one, other = _spread(x, term.values)
    return (one + other).flatten(0, 1)


def _multiply(x: Tensor, factor: Stacked) -> Tensor:
    one, other = _spread(x, factor.values)
    return (one * other).flatten(0, 1)


def _embedding(index: Tensor, table: Stacked, **_: Any) -> Tensor:
    """Rows of tables (M, V, ...) for an index (M * B, ...), each of the member whose index it is."""
    members, size = table.values.shape[:2]
    first = torch.arange(0, members * size, size, device=index.device)
    return table.values.flatten(0, 1)[(index.reshape(members, -1) + first.unsqueeze(1)).view(index.shape)]


WAYS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
    torch.Tensor.matmul: _product,
    torch.matmul: _product,
    torch.Tensor.add: _add,
    torch.Tensor.mul: _multiply,
}
"""What may be done with stacked parameters, by torch's function."""


class Place(NamedTuple):
    """Where a parameter stands: its name in the network, the module that owns it, its name there, and what its name in the
    network would be by this place, which is another where one parameter stands in two."""

    name: str
    owner: nn.Module
    leaf: str
    alias: str


def places_of(network: nn.Module) -> list[Place]:
    """Every parameter's places. Looking for them costs as much as using them."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [
        Place(names[parameter], module, leaf, f"{path}.{leaf}" if path else leaf)
        for path, module in network.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    ]


def run_with(
    network: nn.Module, places: Sequence[Place], values: Mapping[str, Tensor], inputs: Tensor, mask: Tensor | None
) -> Tensor:
    """Outputs of a network (a `Backbone`) with other parameters, by name."""
    # Left to itself, torch finds what is tied, but not that a module which stands in two places is one.
    everywhere = {place.alias: values[place.name] for place in places}
    out: Tensor = functional_call(network, everywhere, (inputs, mask), tie_weights=False)[0]
    return out


def run_stacked(
    network: nn.Module,
    places: Sequence[Place],
    values: Mapping[str, Tensor],
    inputs: Tensor,
    mask: Tensor | None,
    below: bool,
) -> Tensor:
    """Outputs (M, B, ...) of a network (a `Backbone`) with parameters (M, ...), by name, on inputs (M, B, ...).

    below: whether the network is given the members' examples below each other, (M * B, ...), as any network must be that
    counts its axes from the first; a network that counts from the last can do without so many changes of shape.
    """
    given = [each.flatten(0, 1) if below and each is not None else each for each in (inputs, mask)]
    for place in places:
        # Found before the parameter is, which stays where it was.
        place.owner.__dict__[place.leaf] = Stacked(values[place.name])
    try:
        out: Tensor = network(*given)[0]
    finally:
        for place in places:
            del place.owner.__dict__[place.leaf]
    return out.unflatten(0, inputs.shape[:2]) if below else out
