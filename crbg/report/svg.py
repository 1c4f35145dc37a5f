"""Figures embedded in an HTML page: as inline SVG, or as PNG if the SVG is large."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

LARGEST = 300_000  # an SVG with more characters is embedded as PNG
WIDE = 400  # a figure wider than this, in points, takes the whole width of the page


class Figures:
    """The figures of one page. The identifiers of each SVG get a prefix that is unique on the page."""

    def __init__(self) -> None:
        self.count = 0

    def figure(self, path: Path, title: str) -> dict[str, Any]:
        """Load a figure for the template; `path` has no suffix."""
        self.count += 1
        name = f"fig{self.count}"
        text = path.with_name(path.name + ".svg").read_text()
        width = re.search(r'viewBox="0 0 ([\d.]+) ', text)
        shown = {"id": name, "title": title, "wide": width is not None and float(width[1]) > WIDE}
        if len(text) > LARGEST:
            data = base64.b64encode(path.with_name(path.name + ".png").read_bytes()).decode()
            return shown | {"png": data, "svg": None}
        return shown | {"png": None, "svg": inline(text, name)}


def inline(text: str, name: str) -> Any:
    """Return the SVG as template markup, without file header and metadata and with prefixed identifiers."""
    from markupsafe import Markup, escape

    head, body = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{escape(name)}-", body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace("<defs>\n</defs>", "").strip()
    return Markup(f'<svg {box[0] if box else ""} role="img" aria-labelledby="{escape(name)}">{body}')
