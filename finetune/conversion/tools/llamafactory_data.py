"""LLaMA-Factory's data sets, as dataset_info.json describes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.conversion.base import source, split_names
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, shown
from finetune.conversion.reading import read_json
from finetune.conversion.tools.llamafactory_preference import columns_of

FORMS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}
HOLDS = {"preference": "preferences (ranking: true)", "feedback": "judged answers (a column kto_tag)"}
LEARNS = {"": "answers", "preference": "pairs", "feedback": "judged answers"}
COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "messages": {"messages": "messages", "system": "system", "tools": "tools"},
}
TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content")}
"""What the parts of a turn may be called."""
EXPECTED: Mapping[str, tuple[type, str]] = {
    "hf_hub_url": (str, "a name of the hub"),
    "ms_hub_url": (str, "a name"),
    "file_name": (str, "a file"),
    "formatting": (str, "alpaca, sharegpt or openai"),
    "split": (str, "a split"),
    "subset": (str, "a name"),
    "num_samples": (int, "a number of rows"),
    "columns": (dict, "names by names"),
    "tags": (dict, "names by names"),
}


def sources(given: Given, draft: Draft, key: str, place: str, form: str, samples: GivenKey | None) -> None:
    """The sources below `place`, of form `form` where no dataset_info.json says it."""
    entry = given.take(key)
    if entry is None or entry.off:
        return
    folder = str(given.value("dataset_dir", "data"))
    folders = [
        given.file.parent / folder,
        given.file.parent,
        *(parent / folder for parent in given.file.parents),
    ]
    info_file = next(
        (path / "dataset_info.json" for path in folders if (path / "dataset_info.json").is_file()), None
    )
    info = read_json(info_file) if info_file else {}
    unknown = []
    for index, name in enumerate(split_names(entry)):
        here = f"{place}.{index}"
        known = info.get(name) if isinstance(info, dict) else None
        if isinstance(known, dict) and info_file is not None:
            _known(draft, here, entry, known, str(info_file.parent), form)
        else:
            unknown.append(name)
            at = name if "/" in name else f"{folder}/{name}.json"
            source(draft, here, entry, name=at, tell=False, form=form)
        if samples is not None and not samples.off:
            draft.put(f"{here}.max_rows", samples.value, samples)
    draft.carried(entry, place)
    if unknown:
        why = f"dataset_info.json, which says what {', '.join(unknown)} is, isn't here; {form} is assumed"
        draft.otherwise(entry, why, place, changes=True)


def _described(entry: GivenKey, known: Mapping[str, Any]) -> None:
    """Raises ConvertError for a description whose values are of another type."""
    for key, (kind, what) in EXPECTED.items():
        value = known.get(key)
        wrong = value is not None and (not isinstance(value, kind) or isinstance(value, bool))
        if not wrong and kind is dict and value is not None:
            wrong = not all(isinstance(name, str | None) for name in value.values())
        if wrong:
            raise entry.refused(f"dataset_info.json has {key}: {shown(value)}, expected {what}")
    if any(column in (known.get("columns") or {}) for column in ("images", "videos", "audios")):
        raise entry.refused("the data set has images, videos or sounds; rows of text are trained on here")
    if known.get("script_url"):
        raise entry.refused("a script makes the data set's rows, and no code is run: write them to a file")


def _known(draft: Draft, place: str, entry: GivenKey, known: dict[str, Any], folder: str, asks: str) -> None:
    """A data set as dataset_info.json describes it; `asks` is the form of rows that the stage reads."""
    _described(entry, known)
    form = FORMS.get(str(known.get("formatting", "alpaca")), "auto")
    tags, columns = known.get("tags") or {}, known.get("columns") or {}
    holds = "preference" if known.get("ranking") else "feedback" if columns.get("kto_tag") else ""
    wanted = asks if asks in HOLDS else ""
    if holds != wanted:
        has = HOLDS[holds] if holds else f"no {HOLDS[wanted]}"
        raise entry.refused(f"the data set holds {has}, and this training learns from {LEARNS[wanted]}")
    if form == "sharegpt" and tags.get("role_tag", "from") == "role":
        form = "messages"
    lost = [f"{tag}: {tags[tag]}" for tag, names in TAGS.items() if tags.get(tag, names[0]) not in names]
    lost += ["history"] if form == "alpaca" and columns.get("history") else []
    if lost:
        how = f"not read of a row: {', '.join(lost)}; write the rows as messages"
        draft.otherwise(entry, how, place, changes=True)
    if asks in HOLDS:
        mapped = columns_of(form, asks, columns)
        form = asks
    else:
        form = asks if asks == "text" else form
        ours = {"text": {"prompt": "text"}}.get(form, COLUMNS.get(form, {}))
        mapped = {
            ours[name]: column for name, column in columns.items() if name in ours and ours[name] != column
        }
    more: dict[str, Any] = {"columns": mapped, "split": known.get("split"), "config": known.get("subset")}
    if known.get("num_samples"):
        more["sample_rows"] = known["num_samples"]
    name = known.get("hf_hub_url") or known.get("ms_hub_url")
    if name is None:
        if not known.get("file_name"):
            raise entry.refused("dataset_info.json names neither a file nor a data set of the hub for it")
        name = str(Path(folder, known["file_name"]).absolute())
    source(draft, place, entry, name=name, tell=False, form=form, **more)
