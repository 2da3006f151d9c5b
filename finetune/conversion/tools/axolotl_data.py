"""Axolotl's lists of data sets: their prompt types, templates, and what is learned of a turn."""

from typing import Any

from finetune.conversion.base import source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, name_list, whole
from finetune.conversion.tools.axolotl_preference import pairs, templates
from finetune.recipe.aliases import FORMATS, TEMPLATES

SOURCE_KEYS = (
    "path", "type", "name", "split", "data_files", "ds_type", "field", "field_messages", "revision",
    "text_column",
)  # fmt: skip
READERS = ("json", "csv", "parquet", "text", "arrow")
"""Names of readers that stand where a data set's name does, with data_files."""
ASSISTANT = {"assistant", "gpt", "model", "bot", "chatgpt"}
ENDS = ("turn", "all", "last", "none")
"""Of which turns the token that ends them is learned, the default first."""
AS_IS = (
    "preprocess_shards", "trust_remote_code", "field_thinking",
    "template_thinking_key", "field_tools", "field_system",
)  # fmt: skip

PARTS = {
    "role": ("role", "from"), "message_field_role": ("role", "from"),
    "content": ("content", "value"), "message_field_content": ("content", "value"),
}  # fmt: skip
"""What the parts of a turn may be called."""


def data(given: Given, draft: Draft, *, compares: bool) -> None:
    """The sources, and the template that they are written with; `compares`: they hold pairs."""
    if compares:
        templates(given, draft)
    forms = _datasets(given, draft, "datasets", "data.train", compares=compares)
    forms += _datasets(given, draft, "pretraining_dataset", "data.train", compares=False)
    single = given.take("pretraining_dataset") or given.take("datasets")
    if single is not None and not single.off:
        source(draft, "data.train.0", single, form="text")
    _datasets(given, draft, "test_datasets", "data.evaluation.sources", compares=compares)
    if not compares:
        _template(given, draft, forms)


def _template(given: Given, draft: Draft, forms: list[tuple[str, GivenKey | None]]) -> None:
    """One template for all rows: type alpaca writes a prompt of its own, a data set may name one, the file
    has one for the others. The first data set's is taken."""
    stated, jinja = given.get("chat_template"), given.take("chat_template_jinja")
    if jinja is not None and not jinja.off:
        given.take("chat_template")
        draft.carried(stated, "model.chat_template")
        stated = jinja
    asked = {"": stated}
    for template, entry in forms:
        asked.setdefault(template, entry)
    own = [template for template, _ in forms if template]
    if not own:
        if stated is jinja and jinja is not None and not jinja.off:
            draft.carry(jinja, "model.chat_template", jinja.value)
        return
    first = forms[0][0] or own[0]
    by = asked[first]
    draft.put("model.chat_template", first, f"{draft.comment(by)}: {first}" if by else "datasets.0.type")
    written = str(stated.value) if stated is not None and not stated.off else ""
    others = sorted({template or written for template, _ in forms} - {first})
    read = any(not template for template, _ in forms)
    if stated is not None:
        given.take(stated.key)
        if read and written != first:
            draft.otherwise(stated, f"all rows are written with {first}", "model.chat_template", changes=True)
        else:
            draft.carried(stated, "model.chat_template", "each data set has its own")
    elif others and by is not None:
        named = ", ".join(template or "the tokenizer's own" for template in others)
        how = f"all rows are written with {first}; there, others with {named}"
        draft.otherwise(by, how, "model.chat_template", changes=True)


def _datasets(
    given: Given, draft: Draft, key: str, place: str, *, compares: bool
) -> list[tuple[str, GivenKey | None]]:
    """The template of its own that each data set has, if any, with the key that says so."""
    found = []
    judged = draft.value("objective.kind") == "kto"
    for prefix in given.items(key):
        path = given.take(f"{prefix}.path")
        if path is None:
            raise given.refused(f"{prefix} has no path")
        own = ("path", "type", "field_messages") if compares else ("path",)
        kind = given.take(f"{prefix}.type") if compares else None
        read = {name: None if name in own else given.take(f"{prefix}.{name}") for name in SOURCE_KEYS}
        form, more = (
            ("feedback" if judged else "preference", pairs(given, draft, prefix, kind))
            if compares
            else _form(given, draft, prefix, read)
        )
        here = f"{place}.{_next(draft, place)}"
        for name, entry in read.items():
            draft.carried(entry, f"{here}.{'format' if name == 'type' else name}")
        said = {name: None if entry is None else entry.value for name, entry in read.items()}
        more |= {"config": said["name"], "split": said["split"], "revision": said["revision"]}
        first, *files = _names(draft, path, read["data_files"])
        source(draft, here, path, name=first, form=form, **more)
        for file in files:
            source(draft, f"{place}.{_next(draft, place)}", path, name=file, tell=False, form=form, **more)
        if not compares:
            found.append(_own_template(given, draft, prefix, form, read["type"]))
        for left in given.take_below(prefix):
            _leftover(draft, left)
    return found


def _next(draft: Draft, place: str) -> int:
    """The number of the next source."""
    return len(
        {path.removeprefix(f"{place}.").split(".")[0] for path in draft.values if path.startswith(place)}
    )


def _names(draft: Draft, path: GivenKey, files: GivenKey | None) -> list[str]:
    """The data set, or the files that a reader reads."""
    name = str(path.value)
    if files is None or files.off:
        return [name]
    listed = [str(file) for file in (files.value if isinstance(files.value, list) else [files.value])]
    if name in READERS or name.startswith((".", "/")):
        return listed
    how = f"the files {', '.join(listed)} of {name}: download them, or name a config"
    draft.otherwise(files, how, changes=True)
    return [name]


def _own_template(
    given: Given, draft: Draft, prefix: str, form: str, kind: GivenKey | None
) -> tuple[str, GivenKey | None]:
    """The template that a data set's rows have whatever the file says, and the key that says so."""
    if form == "alpaca":
        return "alpaca", kind
    named, jinja = given.take(f"{prefix}.chat_template"), given.take(f"{prefix}.chat_template_jinja")
    older = given.take(f"{prefix}.conversation")
    if jinja is not None and not jinja.off:
        draft.carried(jinja, "model.chat_template")
        draft.carried(named, "model.chat_template")
        return str(jinja.value), jinja
    entry = named or older
    if entry is None or entry.off:
        return "", None
    meant = TEMPLATES.get(str(entry.value).lower(), "")
    if meant:
        draft.carried(entry, "model.chat_template")
        return meant, entry
    known = str(entry.value).lower() in TEMPLATES or str(entry.value).startswith("tokenizer_default")
    draft.otherwise(entry, "the tokenizer's own template", "model.chat_template", changes=not known)
    return "", None


def _leftover(draft: Draft, entry: GivenKey) -> None:
    """What is left of a data set's keys."""
    name = entry.key.rpartition(".")[2]
    if name in PARTS and str(entry.value) not in PARTS[name]:
        how = f"a turn's parts are {' or '.join(PARTS[name])}; bring the rows into that form"
        draft.otherwise(entry, how, "data.train", changes=True)
    elif "message_property_mappings" in entry.key or ".roles." in entry.key or name in (*AS_IS, *PARTS):
        draft.carried(entry, "data.train", "as the format reads it")
    elif name in ("train_on_eos", "train_on_eot"):
        _ends(draft, entry)
    elif name == "roles_to_train":
        _roles(draft, entry)
    elif name == "shards" and not entry.off and whole(entry) > 1:
        draft.drop(entry, f"a {entry.value}th of the rows there, all here: write sample_rows, their number")
    elif entry.off or name.startswith("shards"):
        draft.carried(entry, "", "off there")
    else:
        draft.drop(entry, "no counterpart for a data set's own key")


def _ends(draft: Draft, entry: GivenKey) -> None:
    """Which turns' ends are learned: here those of the turns that are."""
    value = ENDS[0] if entry.value is None else entry.value
    if value not in ENDS:
        raise entry.refused(f"got {value!r}, expected one of {', '.join(ENDS)}")
    if value == ENDS[0]:
        draft.carried(entry, "data.supervise", "the end of each turn that is learned")
    else:
        of = {"all": "of every turn, the user's too", "last": "of the last turn alone", "none": "of no turn"}
        how = f"the end of each turn that is learned; there, {of[value]}"
        draft.otherwise(entry, how, "data.supervise", changes=True)


def _roles(draft: Draft, entry: GivenKey) -> None:
    """Whose turns are learned: the assistant's, unless data.supervise says all."""
    roles = {role.lower() for role in name_list(entry)} if entry.value is not None else {"assistant"}
    if roles and roles <= ASSISTANT:
        draft.carried(entry, "data.supervise", "the assistant's turns")
    else:
        how = f"the assistant's turns are learned; there, those of {', '.join(sorted(roles)) or 'nobody'}"
        draft.drop(entry, how)


def _form(
    given: Given, draft: Draft, prefix: str, read: dict[str, GivenKey | None]
) -> tuple[str, dict[str, Any]]:
    """The format of a data set, and options of it."""
    if any(key.startswith(f"{prefix}.type.") for key in given.entries):
        return _custom(given, draft, prefix)
    kind = read["type"]
    name = str(kind.value) if kind is not None and kind.value is not None else "auto"
    base, styled = name.split(":")[0].split(".")[0], ":" in name
    form = (
        "question_answer"
        if "load_qa" in name
        else "alpaca"
        if name == "alpaca"
        else FORMATS.get(base, "auto")
    )
    if kind is not None and form == "auto" and not kind.off:
        draft.otherwise(kind, f"type {name} is read as format auto", changes=True)
    elif kind is not None and (styled or base.startswith("alpaca_")):
        form = "question_answer" if form == "question_answer" else "alpaca"
        draft.otherwise(
            kind, f"type {name} writes a prompt of its own, and the template another", changes=True
        )
    if form == "messages":
        return _messages(given, prefix, read["field_messages"])
    column = read["field"] or read["text_column"]
    if form == "text" and column is not None and column.value not in (None, "text"):
        return form, {"columns": {"text": column.value}}
    return form, {}


def _messages(given: Given, prefix: str, field: GivenKey | None) -> tuple[str, dict[str, Any]]:
    """Turns in OpenAI's form or ShareGPT's, by the names of their parts."""
    column = field.value if field is not None else None
    role = given.value(
        f"{prefix}.message_property_mappings.role", given.value(f"{prefix}.message_field_role")
    )
    if role == "from" or (column == "conversations" and role is None):
        form, usual = "sharegpt", "conversations"
    else:
        form, usual = "messages", "messages"
    return form, {"columns": {usual: column}} if column not in (None, usual) else {}


def _custom(given: Given, draft: Draft, prefix: str) -> tuple[str, dict[str, Any]]:
    """A prompt written in the file: {instruction}, {input} become the columns that it names."""
    values = {}
    for key in [key for key in given.entries if key.startswith(f"{prefix}.type.")]:
        entry = given.take(key)
        if entry is not None:
            values[key.rpartition(".")[2]] = entry.value
            draft.carried(entry, "data.train.0.template")
    text = str(values.get("format") or "{instruction} {input}")
    names = {
        name: values.get(f"field_{name}") or name for name in ("instruction", "input", "output", "system")
    }
    for name, column in names.items():
        text = text.replace("{" + name + "}", "{{ " + str(column) + " }}")
    completion = "{{ " + str(names["output"]) + " }}"
    return "template", {"template.prompt": text, "template.completion": completion, "template.chat": False}
