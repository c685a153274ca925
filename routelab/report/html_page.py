"""Pages: one HTML file each that needs no network, no script and no other file; their templates extend page.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def rendered(template: Path, **values: Any) -> str:
    """The page of a template, which may extend `page.html`; text in `values` is escaped, what is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    places = FileSystemLoader([template.parent, HERE])
    environment = Environment(loader=places, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(style=style, **values)
