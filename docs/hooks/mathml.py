"""Turns the equations of a page into MathML, which browsers draw themselves: no script and no download."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(output: str, **kwargs: Any) -> str:
    """Replace what `pymdownx.arithmatex` marked."""
    return EQUATION.sub(lambda found: _mathml(found[3], "block" if found[2] == "[" else "inline"), output)


def _mathml(latex: str, display: str) -> str:
    converted = convert(html.unescape(latex).strip(), display=display)
    if "\\" in converted:
        raise ValueError(f"an equation has a command that is not known: {latex}")
    return converted
