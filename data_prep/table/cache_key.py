"""Everything that determines the content of prepared data, as plain values: the cache key."""

import hashlib
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from data_prep import formats
from data_prep.chat.chat_templates import rendering_of
from data_prep.config import DataSection, FileSource, RowsSource, Section, Source
from data_prep.encoding import ANSWERS, RowEncoding
from data_prep.files import Use, find_files, is_pattern, left_out_files
from data_prep.formats.base import INPUT_BELOW
from data_prep.formats.chat import TEMPLATE_ARGUMENTS
from data_prep.formats.python import code_sha256
from data_prep.sources import source_name
from data_prep.table.cache import key_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OPTIONS = (
    "max_length_tokens",
    "over_length",
    "supervise",
    "reasoning",
    "clean",
    "on_bad_row",
    "turn_order",
    "special_tokens_in_text",
    "streaming",
    "system",
    "placeholders",
    "loss_weights",
)
"""The keys of the data section that determine documents. Packs, mixture and the held-out fraction are drawn
from documents."""

LEFT_OUT_AT_DEFAULT = frozenset({
    "system", "placeholders", "loss_weights", "max_rows", "sample_rows", "sample_seed",
})  # fmt: skip
"""Keys of a section or a source that are in the key only if they are set: data that were prepared before they
existed keep their key."""

UNKNOWN_TO_2 = frozenset({"reasoning", "turn_order", "ignore_columns", "files_left_out"})
"""Keys of a section or a source added after preparation 2, whose cache keys don't include them."""

PACKAGES = ("tokenizers", "transformers", "jinja2", "rensa")


def identity_of(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerFast",
    digests: dict[str, str],
    *,
    seed: int,
    first_rows: int | None = None,
    encoding: RowEncoding = ANSWERS,
    before_input: str = INPUT_BELOW,
) -> tuple[str, str | None]:
    """The key of the prepared data of this section, which changes with anything that determines a document;
    and that of an earlier preparation, whose data are the same if it read all that this one reads
    (reads_more)."""
    uses: dict[Use, tuple[Source, ...]] = {"train": section.train, "evaluation": section.held_out}
    preparation = rendering_of(tokenizer).preparation
    options = _asked(section, section.model_dump(mode="json", include=set(OPTIONS)))
    sources = {
        use: [_source(source, use, section, digests, seed) for source in used] for use, used in uses.items()
    }
    identity = {
        "preparation": preparation,
        "first_rows": first_rows,
        **encoding.cache_key(),
        "packages": {name: version(name) for name in PACKAGES},
        "options": options,
        "sources": sources,
        "tokenizer": tokenizer_sha256(tokenizer),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": str(tokenizer.chat_template),
        "date": rendering_of(tokenizer).date_string,
    }
    if preparation == 2:
        identity["options"] = _known_to_2(options)
        identity["sources"] = {use: [_known_to_2(source) for source in made] for use, made in sources.items()}
    if before_input != INPUT_BELOW:
        return key_of(identity | {"before_input": before_input}), None
    return key_of(identity), key_of(identity | {"preparation": 3}) if preparation == 4 else None


def reads_more(report: dict[str, Any]) -> bool:
    """Whether rows had something that preparation 3, which wrote this report, didn't read and 4 reads."""
    return any(TEMPLATE_ARGUMENTS in source["unread_columns"] for source in report["sources"])


def _asked(section: Section, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a section or source, without the later keys that are not set."""
    unset = {
        name for name, field in type(section).model_fields.items() if values.get(name) == field.get_default()
    }
    return {name: value for name, value in values.items() if name not in LEFT_OUT_AT_DEFAULT & unset}


def _known_to_2(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in UNKNOWN_TO_2}


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The hash of the tokenizer: its vocabulary, merges, normalisation and added tokens."""
    # Settings left by a call of the tokenizer don't matter here.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def template_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The hash of the chat template that is in use, without a date."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def _source(
    source: Source, use: Use, section: DataSection, digests: dict[str, str], seed: int
) -> dict[str, Any]:
    """A source by its content and format; of its path only what the places of rows include."""
    values = source.model_dump(mode="json", exclude={"path", "code", "repeat", "share", "evaluation_rows"})
    values = _asked(source, values)
    values |= {"digest": digests[source_name(source)], "place_in": place_in(source, section)}
    if isinstance(source, FileSource):
        values["name"] = PurePath(source.path).name
        values["files_left_out"] = left_out_files(source.path, use)
    if isinstance(source, RowsSource) and source.code is not None:
        values["code"] = code_sha256(source.code)
    versions = {
        form.name: form.version
        for form in formats.FORMATS
        if form.version and source.format in (form.name, "auto")
    }
    if versions:
        values["formats"] = versions
    if isinstance(source, RowsSource) and source.template is not None and source.template.other_prompts:
        values["seed"] = seed
    return values


def place_in(source: Source, section: DataSection) -> str:
    """The prefix that distinguishes same-named files of different sources in the places of rows: as many
    folders as needed."""
    if not isinstance(source, FileSource) or is_pattern(source.path):
        return ""  # the files of a glob are named with its folder already
    own = PurePath(source.path)
    others = {PurePath(other.path) for other in section.sources if isinstance(other, FileSource)} - {own}
    depth = 1
    while depth < len(own.parts) and any(other.parts[-depth:] == own.parts[-depth:] for other in others):
        depth += 1
    return "".join(f"{part}/" for part in own.parts[-depth:-1])


def stamps_of(section: DataSection) -> list[tuple[str, int, int]]:
    """Size and modification time of every file that is read, to detect files that change meanwhile."""
    files: list[Path] = []
    for source in section.sources:
        files += [file.path for file in find_files(source.path)] if isinstance(source, FileSource) else []
    stats = [(str(path), path.stat()) for path in files]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
