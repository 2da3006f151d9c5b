"""Rules for data: packs, mixtures, streams, leakage. Each is a small function; RULES lists them. No file is
looked at."""

from collections.abc import Callable, Iterator
from pathlib import PurePath

from data_prep import formats
from data_prep.config import FileSource, RowsSource, Section, Source
from data_prep.files import kind_of
from finetune.recipe.given import Given, RuleProblem, asked
from finetune.recipe.schema import Recipe

SHARES_TOLERANCE = 1e-6


def _supervise(recipe: Recipe, given: Given) -> RuleProblem:
    data = recipe.data
    # "all" is what such rows are anyway.
    if data.supervise in ("last", "completion") and all(source.format == "text" for source in data.train):
        message = (
            f"every source of data.train has format text, whose rows are learned whole; {data.supervise} "
            "changes nothing"
        )
        yield "data.supervise", message
    if data.supervise == "all" and data.reasoning == "context":
        yield (
            "data.reasoning",
            "with data.supervise all everything is learned, thoughts too; take learn or drop, or supervise "
            "assistant",
        )


def _changed_rows(recipe: Recipe, given: Given) -> RuleProblem:
    """What changes conversations alone needs some."""
    data = recipe.data
    if data.system is not None and all(_makes(source) == "texts" for source in data.sources):
        yield "data.system", "every source makes plain texts, which have no system message; remove this"
    repeated = [text for text in data.placeholders if text == data.placeholders[text]]
    if repeated:
        yield "data.placeholders", f"{repeated[0]!r} is replaced by itself; remove it"


def _makes(source: Source) -> str:
    if isinstance(source, RowsSource) and source.template is not None:
        return "conversations" if source.template.chat else "texts"
    return "either" if source.format == "auto" else formats.named(source.format).makes


def _packs(recipe: Recipe, given: Given) -> RuleProblem:
    data = recipe.data
    if any(
        _wrong(data, "data", knob, given)
        for knob in ("pack_length_tokens", "max_length_tokens", "pack_split")
    ):
        return
    if (
        data.pack_length_tokens is not None
        and data.pack_length_tokens < data.max_length_tokens
        and not data.pack_split
    ):
        path = "data.pack_length_tokens" if "data.pack_length_tokens" in given else "data.max_length_tokens"
        message = f"a pack of {data.pack_length_tokens} tokens can't hold a document of max_length_tokens "
        yield path, f"{message}({data.max_length_tokens}); make them equal, or set data.pack_split: true"
    if data.attention == "leaky" and data.pack_length_tokens is None:
        yield "data.attention", "is that within packs: set data.pack_length_tokens, or remove this"
    if data.pack_split and data.pack_length_tokens is None:
        yield (
            "data.pack_split",
            "needs data.pack_length_tokens: without packs nothing is cut where one is full",
        )


def _mixture(recipe: Recipe, given: Given) -> RuleProblem:
    sources = recipe.data.train
    if recipe.data.streaming is not None:
        return  # _streaming says what a stream can't have
    shares = [source.share for source in sources]
    if all(share is None for share in shares):
        if asked(recipe, given, "data.share_of"):
            yield "data.share_of", "no source of data.train has a share; give each one, or remove this"
        return
    for index, source in enumerate(sources):
        if source.share is None and f"data.train.{index}.share" not in given:
            yield f"data.train.{index}", "has no share, and another source has one; give each source one"
        elif source.repeat != 1 or f"data.train.{index}.repeat" in given:
            yield (
                f"data.train.{index}.repeat",
                "repeat and share exclude each other: the share decides how often rows are seen",
            )
    whole = sum(share or 0 for share in shares)
    if None not in shares and abs(whole - 1) > SHARES_TOLERANCE:
        yield "data.train", f"the shares of the sources sum to {whole:g}, expected 1"


def _streaming(recipe: Recipe, given: Given) -> RuleProblem:
    """What needs all rows at once, or their number, can't work in a stream."""
    data, clean = recipe.data, recipe.data.clean
    if data.streaming is None:
        return
    if recipe.train.max_steps is None and "train.max_steps" not in given:
        yield "data.streaming", "a stream has no known length; set train.max_steps"
    for way in ("fraction", "rows"):
        if data.evaluation and getattr(data.evaluation, way) is not None:
            message = "a share of a stream can't be held out, its length isn't known; use "
            yield f"data.evaluation.{way}", f"{message}data.evaluation.sources"
    if not data.shuffle and len(data.train) > 1:
        yield (
            "data.shuffle",
            "a stream reads its sources a row in turn, so only one source can keep its order; remove this",
        )
    if clean.near_duplicates is not None:
        yield (
            "data.clean.near_duplicates",
            "near duplicates can't be found in a stream, whose rows aren't all kept; remove it",
        )
    if clean.duplicates == "drop":
        yield (
            "data.clean.duplicates",
            "duplicates can't be found in a stream, whose rows aren't all kept; remove it",
        )
    if data.held_out and clean.leakage != "keep":
        message = (
            "a stream can't be checked for rows of the evaluation before it is trained on; set "
            "data.clean.leakage: keep"
        )
        yield "data.clean.leakage" if "data.clean.leakage" in given else "data.streaming", message
    for index, source in enumerate(data.train):
        if source.share is not None:
            yield (
                f"data.train.{index}.share",
                "a stream has no exact shares: its sources are read a row in turn; remove it",
            )
        if source.repeat != 1:
            yield f"data.train.{index}.repeat", "a stream reads each row once a pass; remove it"
        if source.sample_rows is not None:
            yield (
                f"data.train.{index}.sample_rows",
                "rows can't be drawn from a stream, whose number isn't known; use max_rows",
            )
        if source.evaluation_rows is not None:
            yield (
                f"data.train.{index}.evaluation_rows",
                "rows of a stream can't be held out; use data.evaluation.sources",
            )


def _leakage(recipe: Recipe, given: Given) -> RuleProblem:
    data = recipe.data
    if _wrong(data, "data", "evaluation", given):
        return
    if "data.clean.leakage" in given and data.clean.leakage != "refuse" and not data.held_out:
        message = (
            "leakage is into data.evaluation.sources, and there are none (a fraction keeps equal rows "
            "together)"
        )
        yield "data.clean.leakage", f"{message}; remove it"


def _evaluated_once(recipe: Recipe, given: Given) -> RuleProblem:
    for index, source in enumerate(recipe.data.held_out):
        for knob, changed in (("repeat", source.repeat != 1), ("share", source.share is not None)):
            if changed:
                path = f"data.evaluation.sources.{index}.{knob}"
                yield path, "evaluation rows are seen once each; repeat and share are for data.train"
        if source.evaluation_rows is not None:
            yield (
                f"data.evaluation.sources.{index}.evaluation_rows",
                "all rows of this source are evaluated on; max_rows and sample_rows take fewer of them",
            )


def _subsets(recipe: Recipe, given: Given) -> RuleProblem:
    for path, source in _places(recipe):
        if source.sample_seed is not None and source.sample_rows is None:
            yield f"{path}.sample_seed", "draws sample_rows, which isn't set; set it, or remove this"
        if source.sample_rows and source.max_rows and source.sample_rows > source.max_rows:
            yield (
                f"{path}.sample_rows",
                f"{source.sample_rows:,} rows can't be drawn from the first {source.max_rows:,} (max_rows)",
            )
    for index, source in enumerate(recipe.data.train):
        if source.evaluation_rows is None:
            continue
        path = f"data.train.{index}.evaluation_rows"
        if recipe.data.evaluation is not None:
            yield (
                path,
                "rows are held out either of single sources or by data.evaluation; remove one of the two",
            )
        if source.max_rows is not None and source.evaluation_rows >= source.max_rows:
            yield (
                path,
                f"must be fewer than max_rows ({source.max_rows:,}), so that rows are left to train on",
            )
        if source.sample_rows is not None and source.evaluation_rows >= source.sample_rows:
            message = f"must be fewer than sample_rows ({source.sample_rows:,}), so that rows are left to "
            yield path, f"{message}train on"


def _places(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    """Every source with its dotted path."""
    for index, source in enumerate(recipe.data.train):
        yield f"data.train.{index}", source
    for index, source in enumerate(recipe.data.held_out):
        yield f"data.evaluation.sources.{index}", source


def _wrong(section: Section, path: str, knob: str, given: Given) -> bool:
    """Whether a knob was written, but with a value that is wrong and reported already."""
    return f"{path}.{knob}" in given and knob not in section.model_fields_set


def _findings(recipe: Recipe, given: Given) -> RuleProblem:
    findings = recipe.data.allow_findings
    repeated = sorted({name for name in findings if findings.count(name) > 1})
    if repeated:
        yield "data.allow_findings", f"named twice: {', '.join(repeated)}"


def _files(recipe: Recipe, given: Given) -> RuleProblem:
    for path, source in _places(recipe):
        if not isinstance(source, FileSource):
            continue
        fits = source.format == "auto" or formats.named(source.format).reads(("text",))
        if kind_of(PurePath(source.path).name) == ".txt" and not fits:
            yield f"{path}.format", f"a .txt file has format text (or template, or auto); got {source.format}"


RULES: tuple[Callable[[Recipe, Given], RuleProblem], ...] = (
    _supervise,
    _changed_rows,
    _packs,
    _mixture,
    _streaming,
    _leakage,
    _evaluated_once,
    _subsets,
    _findings,
    _files,
)
