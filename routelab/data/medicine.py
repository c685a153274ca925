"""Medicine: the descriptions of ICD-10-CM, the United States' clinical modification of the classification of diseases."""

from __future__ import annotations

import functools
import re
from xml.etree import ElementTree

from routelab.core.errors import UsageError
from routelab.data.packages import installed_version, package_folder
from routelab.data.text import Document

_NOTES = {"inclusionTerm", "includes", "excludes1", "excludes2", "codeFirst", "codeAlso", "useAdditionalCode", "notes"}

_TEXT_SHARE = 0.4
"""Text in the bytes of the table, about; the rest is markup."""


def documents() -> list[Document]:
    """One per block of the classification ("A00-A09 Intestinal infectious diseases"), which is its own group: the block's
    title, then each code with its description, its notes indented below it."""
    folder = package_folder("simple_icd_10_cm", "domain 'medicine'", "simple-icd-10-cm") / "data"
    tables = sorted(folder.glob("icd10c*tabular*.xml"))
    if not tables:
        raise UsageError(
            f"domain 'medicine' finds no icd10c-tabular-*.xml in {str(folder)!r}: pip install 'simple-icd-10-cm<1.6'"
        )
    # Blocks are cut out by their tags and parsed one by one, when they are read: the whole table takes seconds.
    table = tables[-1].read_bytes()
    found = []
    for block in re.finditer(rb'<section id="([^"]+)">.*?</section>', table, re.DOTALL):
        # A few blocks are only placeholders for a heading.
        if b"<diag>" in block[0]:
            name, size = block[1].decode(), int(_TEXT_SHARE * len(block[0]))
            found.append(Document(name, name, size, functools.partial(text_of, block[0])))
    return found


def source() -> str:
    """Where the texts come from."""
    return f"medicine: ICD-10-CM of simple-icd-10-cm {installed_version('simple-icd-10-cm')} (MIT; US government data)"


def text_of(block: bytes) -> bytes:
    """The text of one `<section>` element."""
    section = ElementTree.fromstring(block)
    lines = [(section.findtext("desc") or "").strip()]
    for part in section:
        if part.tag == "diag":
            _describe(part, lines)
    return ("\n".join(lines) + "\n").encode()


def _describe(code: ElementTree.Element, lines: list[str]) -> None:
    place, name = len(lines), ""
    lines.append("")
    for part in code:
        if part.tag == "diag":
            _describe(part, lines)
        elif part.tag == "name":
            name = (part.text or "").strip()
        elif part.tag == "desc":
            lines[place] = f"{name} {(part.text or '').strip()}"
        elif part.tag in _NOTES:
            lines.extend(f"  {(note.text or '').strip()}" for note in part if note.tag == "note")
