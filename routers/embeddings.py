"""A table of token embeddings that the user brings as a file.

Axes: V vocabulary, D features.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SUFFIXES = (".npy", ".pt", ".safetensors")


def read_embeddings(path: str | Path, vocab_size: int | None = None) -> Tensor:
    """The (V, D) table in a file, in float32 on the CPU; D may differ from the model's.

    .npy holds the array; .pt (read with `weights_only=True`) and .safetensors hold one matrix, alone or as the only one
    of their named tensors. ValueError in one sentence for any other content, or if V is not `vocab_size`.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"embeddings is {str(path)!r}; it must be a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"embeddings is {str(path)!r}, and there is no such file")
    try:
        about = path.stat()
        found = _read(path, about.st_mtime_ns, about.st_size)
    except Exception as error:
        # Each reader has errors of its own, some of many lines.
        raise ValueError(f"embeddings file {str(path)!r} cannot be read as {path.suffix}: {type(error).__name__}") from error
    if isinstance(found, dict):
        matrices = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim == 2}
        if len(matrices) != 1:
            raise ValueError(
                f"embeddings file {str(path)!r} holds {len(matrices)} matrices ({', '.join(map(str, list(matrices)[:8])) or 'none'}); "
                "it must hold one"
            )
        found = next(iter(matrices.values()))
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
        shape = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"embeddings file {str(path)!r} holds {shape}; it must hold a floating-point matrix (vocabulary, features)"
        )
    if vocab_size is not None and found.shape[0] != vocab_size:
        raise ValueError(f"embeddings file {str(path)!r} has {found.shape[0]} rows; the data's vocabulary has {vocab_size}")
    table = found.float()
    if not bool(torch.isfinite(table).all()):
        raise ValueError(f"embeddings file {str(path)!r} holds a value that is not finite")
    return table


@functools.lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> Any:
    # One table in memory for all layers of an arm, and for the trial builds that size it; read again once it has changed.
    if path.suffix == ".npy":
        import numpy as np

        return torch.from_numpy(np.load(path, allow_pickle=False))
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    return load_file(path)
