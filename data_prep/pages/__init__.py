"""Pages for people to look at: one HTML file each, that loads nothing, with what they have in common.

Every value is escaped by Jinja, and before that passed at least through clean_for_terminal: neither a tag in
a row nor a control character that reverses the direction of text changes a page.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.text import clean_for_terminal

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def page_environment(
    *folders: Path,
    clean: Callable[[str], str] = clean_for_terminal,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> "Environment":
    """Templates of these folders, which may extend page.html.jinja; each text is passed through `clean`
    before it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def cleaned(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader([*folders, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": "{:,}".format, "percent": "{:.1%}".format, **(filters or {})}
    return environment
