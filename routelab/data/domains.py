"""Text of several domains in bytes, for measuring what experts specialise in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from routelab.core.errors import UsageError, unknown
from routelab.data.base import DataSet, holds
from routelab.data.text import Document, Stream, check_shares, hold_out, stream, text_data

CORE = {
    "law": "law:documents:source",
    "medicine": "medicine:documents:source",
    "python": "code:python_documents:python_source",
    "cpp": "code:cpp_documents:cpp_source",
    "mathematics": "mathematics:documents:source",
}
"""Domains that a plain install has: the default, so that results do not depend on what else is installed."""

EXTRA = {
    "english": "scripture:english_documents:english_source",
    "japanese": "scripture:japanese_documents:japanese_source",
}
"""Domains that need the extra `data`."""

APART = {"drama": "drama:documents:source"}
"""Domains that are asked for by name: a second English, from a package installed by itself (`routelab.data.drama`)."""


@holds("text")
def domains(
    *,
    domains: Sequence[str] | str | None = None,
    window: int = 256,
    bytes_per_domain: float | None = 1e6,
    validation: float = 0.05,
    test: float = 0.1,
) -> DataSet:
    """Next byte in law, medicine, Python, C++ and mathematics (default), English and Japanese (extra `data`), 1 MB of each;
    and in English drama, asked for by name.

    Law is licence texts, medicine ICD-10-CM, Python the standard library, C++ torch's headers, mathematics generated
    questions, English the World English Bible, drama Shakespeare; `source` says which versions. Whole documents, and with
    them their near duplicates, are held out for `validation` and `test` (shares of a domain). Windows of `window` bytes may
    span documents of one domain, which a zero byte ends, but never two domains or splits; every domain has as many windows as
    any other, and each window keeps its domain. `domains`: a list, or "all" (but drama). `bytes_per_domain`: about what the
    splits of a domain hold together, None for as much as the smallest domain has; below that, documents longer than 16 KiB
    give an excerpt.
    """
    check_shares(validation, test)
    if bytes_per_domain is not None and not bytes_per_domain > 0:
        raise ValueError(f"bytes_per_domain is {bytes_per_domain}; it must be above 0, or null for all")
    names = chosen(domains)
    streams, sources = {}, []
    for name in names:
        found, told = _part(name)
        held = hold_out(found(), validation, test, name)
        parts = ((held.train, 1 - validation - test), (held.validation, validation), (held.test, test))
        limits = [None if bytes_per_domain is None else share * bytes_per_domain for _, share in parts]
        texts = [_cut(stream(part, limit, name), limit) for (part, _), limit in zip(parts, limits, strict=True)]
        streams[name] = (texts[0], texts[1], texts[2])
        sources.append(told())
    return text_data("domains", streams, window, "; ".join(sources), balanced=True)


def chosen(wanted: Sequence[str] | str | None) -> list[str]:
    """The domains' names in a fixed order, whatever the order asked for; UsageError for a name that is none."""
    everything = [*CORE, *EXTRA, *APART]
    if wanted is None:
        return list(CORE)
    if wanted == "all":
        return [*CORE, *EXTRA]
    asked = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in asked:
        if name not in everything:
            raise unknown("domain of data set 'domains'", name, [*everything, "all"])
    if not asked:
        raise UsageError(f"data.domains is empty; name some of {', '.join(everything)}, or all")
    return [name for name in everything if name in asked]


def _part(name: str) -> tuple[Callable[[], list[Document]], Callable[[], str]]:
    module, documents, source = {**CORE, **EXTRA, **APART}[name].split(":")
    found: Any = importlib.import_module(f"routelab.data.{module}")
    return getattr(found, documents), getattr(found, source)


def _cut(text: Stream, limit: float | None) -> Stream:
    return text if limit is None else text.cut(int(limit) + 1)
