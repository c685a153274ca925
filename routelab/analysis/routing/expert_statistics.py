"""One layer's choices: load, confidence, which experts are chosen together, and which are alike.

Axes: T tokens, E experts, R rows, X weights of an expert, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from routelab.analysis.routing.mutual_information import entropy_bits

Array = NDArray[Any]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def load(share_TE: Array) -> Array:
    """Each expert's part of the layer's load times E: 1 is balance, 0 a dead expert. (E,)"""
    total = share_TE.sum(0).astype(np.float64)
    return total / max(float(total.mean()), 1e-12)


def confidence(prob_TE: Array) -> dict[str, Any]:
    """How sure the router is: of the tokens with any mass, divided by it.

    largest: quantiles (`QUANTILES`) of the largest probability. margin: its mean distance to the second one. entropy: mean
    over tokens, in bits. spread: the entropy of the mean, which is log2 E for an even load; spread - entropy is what the
    token decides.
    """
    mass = np.clip(prob_TE, 0, None).astype(np.float64)
    mass = mass[mass.sum(1) > 0]
    if not len(mass):
        return {"largest": [float("nan")] * len(QUANTILES), "margin": float("nan"), "entropy": 0.0, "spread": 0.0}
    mass = mass / mass.sum(1, keepdims=True)
    ordered = np.sort(mass, 1)
    second = ordered[:, -2] if mass.shape[1] > 1 else np.zeros(len(mass))
    logs = np.log2(mass, out=np.zeros_like(mass), where=mass > 0)
    return {
        "largest": [float(value) for value in np.quantile(ordered[:, -1], QUANTILES)],
        "margin": float((ordered[:, -1] - second).mean()),
        "entropy": float(-(mass * logs).sum(1).mean()),
        "spread": entropy_bits(mass.mean(0)),
    }


def co_selection(chosen_TE: Array) -> Array:
    """How often two experts are chosen by one token, over what their loads give without preference: (E, E), NaN on the
    diagonal, where one of the two is never chosen, and everywhere if no token chooses two.

    Without preference is P(a) P(b) times what tokens that choose as many experts evenly have of it,
    E mean(k (k - 1)) / ((E - 1) mean(k)^2), which is below 1: a token never chooses an expert twice.
    """
    chosen = (chosen_TE > 0).astype(np.float64)
    experts, rate, k = chosen.shape[1], chosen.mean(0), chosen.sum(1)
    expected = np.outer(rate, rate)
    if k.max(initial=0) > 1:
        expected *= experts * (k * (k - 1)).mean() / ((experts - 1) * k.mean() ** 2)
    else:
        expected[:] = 0
    lift = np.divide(chosen.T @ chosen / len(chosen), expected, out=np.full_like(expected, np.nan), where=expected > 0)
    np.fill_diagonal(lift, np.nan)
    return lift


def weight_similarity(weight_EX: Array) -> Array:
    """Cosines of the experts' weights, (E, E). Experts that compute the same with their hidden units in another order, or with
    other scales, are not seen: see `output_similarity`."""
    unit = weight_EX / np.maximum(np.linalg.norm(weight_EX, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def output_similarity(out_ERD: Array) -> Array:
    """Cosines of two experts' outputs on the same rows, mean over the rows, (E, E): 1 for experts that do the same."""
    unit = out_ERD / np.maximum(np.linalg.norm(out_ERD, axis=2, keepdims=True), 1e-12)
    return np.einsum("ard,brd->ab", unit, unit) / out_ERD.shape[1]


def alike(similarity_EE: Array, least: float) -> list[tuple[int, int, float]]:
    """Pairs of experts with a similarity of at least `least`, most alike first."""
    above = [(int(a), int(b), float(similarity_EE[a, b])) for a, b in zip(*np.triu_indices(len(similarity_EE), 1), strict=True)]
    return sorted((pair for pair in above if pair[2] >= least), key=lambda pair: -pair[2])
