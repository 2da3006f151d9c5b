"""What decides the content of prepared data, as plain values: the key of the cache."""

import hashlib
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from data_prep.cache import key_of
from data_prep.chat_templates import rendering_of
from data_prep.config import DataSection, FileSource, RowsSource, Source
from data_prep.files import find_files, is_pattern
from data_prep.formats.code import code_sha256
from data_prep.sources import source_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PREPARATION = 1
"""The version of the way from rows to tokens; raising it makes every cache prepare again."""

OPTIONS = ("max_length_tokens", "over_length", "supervise", "clean", "on_bad_row", "special_tokens_in_text", "streaming")
"""The keys of the data section that decide documents. Packs, mixture and the held-out fraction are drawn from documents."""

PACKAGES = ("tokenizers", "transformers", "jinja2")


def identity_of(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerFast",
    digests: dict[str, str],
    *,
    seed: int,
    first_rows: int | None = None,
) -> str:
    """The key of the prepared data of this section; changing anything that decides a document changes it."""
    own = section.evaluation.sources if section.evaluation is not None else None
    uses: dict[str, tuple[Source, ...]] = {"train": section.train, "evaluation": own or ()}
    return key_of(
        {
            "preparation": PREPARATION,
            "first_rows": first_rows,
            "packages": {name: version(name) for name in PACKAGES},
            "options": section.model_dump(mode="json", include=set(OPTIONS)),
            "sources": {use: [_source(source, section, digests, seed) for source in sources] for use, sources in uses.items()},
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "template": str(tokenizer.chat_template),
            "date": rendering_of(tokenizer).date_string,
        }
    )


def _source(source: Source, section: DataSection, digests: dict[str, str], seed: int) -> dict[str, Any]:
    """A source by its content and format; of its path only what the places of rows name."""
    values = source.model_dump(mode="json", exclude={"path", "code", "repeat", "share"})
    values |= {"digest": digests[source_name(source)], "place_in": place_in(source, section)}
    if isinstance(source, FileSource):
        values["name"] = PurePath(source.path).name
    if isinstance(source, RowsSource) and source.code is not None:
        values["code"] = code_sha256(source.code)
    if isinstance(source, RowsSource) and source.template is not None and source.template.other_prompts:
        values["seed"] = seed
    return values


def place_in(source: Source, section: DataSection) -> str:
    """What tells a file from another source's of the same name, in the places of rows: its folder's name; else nothing."""
    sources = section.train + ((section.evaluation and section.evaluation.sources) or ())
    paths = {PurePath(other.path) for other in sources if isinstance(other, FileSource)}
    if not isinstance(source, FileSource) or sum(path.name == PurePath(source.path).name for path in paths) < 2:
        return ""
    if is_pattern(source.path):
        return ""  # the files of a glob are named with its folder already
    return f"{PurePath(source.path).parent.name}/"


def stamps_of(section: DataSection) -> list[tuple[str, int, int]]:
    """Size and time of change of every file that is read, by which a file is known that changes meanwhile."""
    own = section.evaluation.sources if section.evaluation is not None else None
    files: list[Path] = []
    for source in section.train + (own or ()):
        files += [file.path for file in find_files(source.path)] if isinstance(source, FileSource) else []
    stats = [(str(path), path.stat()) for path in files]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
