"""A model as it is served: in the precision that its device computes fastest in."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from routelab.routers.base import Router

M = TypeVar("M", bound=nn.Module)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def usual(device: torch.device) -> str:
    """What a run is trained in on this device, where nothing else is asked for: bfloat16 on a GPU that has it, else float32."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def in_precision(model: M, precision: str) -> M:
    """A copy of the model with all parameters and buffers in this precision but those of routers, which choose in float32."""
    made, dtype = copy.deepcopy(model), PRECISIONS[precision]
    theirs = {
        id(tensor) for part in made.modules() if isinstance(part, Router) for tensor in (*part.parameters(), *part.buffers())
    }
    for tensor in (*made.parameters(), *made.buffers()):
        if id(tensor) not in theirs and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return made
