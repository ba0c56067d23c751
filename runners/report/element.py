"""HTML and SVG from the standard library's element tree: text stays text, whatever an engine's message holds."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

__all__ = ["Child", "Element", "el", "to_html"]

Child = str | Element | None
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


def el(tag: str, *children: Child | list[Element], **attributes: object) -> Element:
    """An element; ``class_`` and ``stroke_width`` are written ``class`` and ``stroke-width``, None is left out."""
    given = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items() if value is not None}
    element = Element(tag, given)
    for child in children:
        for item in child if isinstance(child, list) else [child]:
            _append(element, item)
    return element


def _append(element: Element, child: Child) -> None:
    if child is None:
        return
    if isinstance(child, Element):
        element.append(child)
        return
    text = _CONTROL.sub("�", child)
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def to_html(root: Element) -> str:
    """A whole page."""
    return "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
