"""Law: the licence texts of the package spdx, in families of near duplicates.

Axes: L licences, W word sequences.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from routelab.data.packages import installed_version, package_folder
from routelab.data.text import Document

SHINGLE = 8
"""Words of a sequence."""

ALIKE = 0.4
"""Two texts belong to one family if they share this part of the word sequences of the one that has fewer."""


def documents() -> list[Document]:
    """One per licence; a group is a family."""
    folder = package_folder("spdx", "domain 'law'", "spdx") / "data"
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        content = path.read_bytes()
        try:
            texts[path.stem] = content.decode("utf-8")
        except UnicodeDecodeError:
            texts[path.stem] = content.decode("latin-1")
    texts.pop("README", None)
    family = families(texts)
    return [Document.of(name, family[name], text) for name, text in texts.items()]


def source() -> str:
    """Where the texts come from."""
    return f"law: licence texts of spdx {installed_version('spdx')} (CC0)"


def stem(identifier: str) -> str:
    """The part of an SPDX identifier before versions and variants: "deprecated_LGPL-2.1+" -> "LGPL"."""
    return re.split(r"[-+]", identifier.removeprefix("deprecated_"))[0]


def families(texts: dict[str, str]) -> dict[str, str]:
    """The family of every licence: those with one stem, or alike in words, and whatever is linked by a chain of these."""
    names = list(texts)
    parent = list(range(len(names)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    links = [(int(a), int(b)) for a, b in np.argwhere(np.triu(overlap(list(texts.values())), 1) >= ALIKE)]
    first: dict[str, int] = {}
    links += [(first.setdefault(stem(name), place), place) for place, name in enumerate(names)]
    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {name: names[root(place)] for place, name in enumerate(names)}


def overlap(texts: list[str]) -> NDArray[np.float64]:
    """The share of word sequences that two texts have in common, of the one that has fewer: (L, L), 0 to 1."""
    from scipy import sparse

    numbers: dict[str, int] = {}
    rows, columns = [], []
    for place, text in enumerate(texts):
        words = np.array([numbers.setdefault(word, len(numbers)) for word in text.lower().split()], np.uint64)
        if len(words) < SHINGLE:
            continue
        hashed = np.zeros(len(words) - SHINGLE + 1, np.uint64)
        for offset in range(SHINGLE):
            # A polynomial modulo 2^64: the same for the same words in the same order.
            hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + len(hashed)] + np.uint64(1)
        hashed = np.unique(hashed)
        rows.append(np.full(len(hashed), place))
        columns.append(hashed)
    _, column = np.unique(np.concatenate(columns), return_inverse=True)
    row = np.concatenate(rows)
    has = sparse.csr_array((np.ones(len(row), np.float32), (row, column)), shape=(len(texts), int(column.max()) + 1))
    common = np.asarray((has @ has.T).todense(), np.float64)
    fewer = np.minimum.outer(common.diagonal(), common.diagonal())
    return common / np.maximum(fewer, 1.0)
