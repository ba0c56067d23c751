"""SVG from the standard library's element tree: text stays text, whatever an engine's message holds."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

__all__ = ["Element", "clean", "el"]

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


def clean(text: str) -> str:
    """Text without the control characters that HTML cannot hold."""
    return _CONTROL.sub("�", text)


def _append(element: Element, child: Child) -> None:
    if child is None:
        return
    if isinstance(child, Element):
        element.append(child)
        return
    text = clean(child)
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text
