"""A page of HTML as its elements, for tests of what it says."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "wbr", "link", "img", "br", "input", "base"})


@dataclass
class Element:
    """An element of a page, and all text in it."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: list["Element"] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())

    def of_class(self, name: str) -> list["Element"]:
        return [element for element in self.inside if name in element.classes]

    def of_tag(self, *names: str) -> list["Element"]:
        return [element for element in self.inside if element.tag in names]


class Page(HTMLParser):
    """A page as its elements."""

    def __init__(self, html: str):
        super().__init__()
        self.all = Element("", {})
        self._open = [self.all]
        self.feed(html)
        self.close()
        assert self._open == [self.all], "an element isn't closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        for around in self._open:
            around.inside.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data


def page_of(html: str) -> Element:
    return Page(html).all
