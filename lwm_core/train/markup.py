"""Elements of HTML and SVG: whatever text stands in them is escaped when they are written."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring


def element(tag: str, *children: Element | str, **attributes: str | float) -> Element:
    """An element with text and elements in it; of `class_` and `stop_color` the names are
    `class` and `stop-color`."""
    made = Element(tag, {_name(key): str(value) for key, value in attributes.items()})
    for child in children:
        if not isinstance(child, str):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def to_html(root: Element) -> str:
    """A whole HTML document."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
