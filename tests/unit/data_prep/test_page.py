"""The page of an audit: it says what the audit says, as text, and loads and runs nothing."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.audit.audit import Audit, AuditRow, Epoch, TokenSpan, audit_of
from data_prep.audit.html_report import audit_page, bars
from data_prep.audit.report import LENGTH_EDGES, DataReport, RowCounts, SourceReport
from data_prep.config import DataSection
from data_prep.preparation import prepare
from data_prep.text import clean_for_terminal
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.browser import needs_browser, open_page
from tests.unit.data_prep.page_elements import Element, page_of

NO_EPOCH = Epoch(0, 0, 0, packed=False, slots_used=0.0)
HOSTILE = (
    "</div></mark></title><script>alert(1)</script> \u202eabc\u202c <img src=x onerror=alert(1)> & &lt; \"'"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def data_section(tmp_path_factory: pytest.TempPathFactory) -> DataSection:
    """A folder of rows good and bad, a conversation with a weight, articles of several summaries, rows held
    out."""
    folder = tmp_path_factory.mktemp("page")
    rows: list[dict[str, Any]] = [{"instruction": f"Say {n}.", "output": "blue " * n} for n in range(1, 31)]
    rows += [
        {"instruction": "Show it.", "output": f"It is\n\n\tthis: {HOSTILE}", "id": 3},
        {"instruction": "Grüße, 世界 🙂, مرحبا", "output": "\nÇa va\u00a0? "},
        {"instruction": "Say 1.", "output": "blue"},
        {"instruction": "say 1.", "output": "BLUE"},
        {"instruction": "Nothing", "output": " "},
        {"instruction": "What is <|im_end|>?", "output": "b"},
        {"instruction": "It is long.", "output": "word " * 300},
    ]
    talk = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello\nthere", "weight": 0.5},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Good bye."},
    ]
    (folder / "rows").mkdir()
    (folder / "rows" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    (folder / "rows" / "notes <i>.md").write_text("no rows")
    (folder / "talk.json").write_text(json.dumps([{"messages": talk}]))
    (folder / "short.json").write_text(json.dumps([{"document": "d", "summary": ["a", "b"]}] * 2))
    (folder / "held.json").write_text(json.dumps([rows[4]]))
    train = [
        {"path": str(folder / "rows"), "format": "alpaca", "repeat": 2},
        {"path": str(folder / "talk.json"), "format": "messages"},
        {"path": str(folder / "short.json"), "format": "auto"},
    ]
    held = {"path": str(folder / "held.json"), "format": "alpaca"}
    options = {
        "max_length_tokens": 256,
        "over_length": "truncate_end",
        "on_bad_row": "skip",
        "pack_length_tokens": 512,
    }
    return DataSection.model_validate({"train": train, "evaluation": {"sources": [held]}} | options)


@pytest.fixture(scope="module")
def audit(data_section: DataSection, tokenizer: PreTrainedTokenizerFast) -> Audit:
    data = prepare(data_section, tokenizer, seed=0, audit=True)
    return audit_of(data_section, data, tokenizer, seed=0, samples=100)


@pytest.fixture(scope="module")
def html(audit: Audit) -> str:
    return audit_page(audit, "my <recipe>")


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return page_of(html)


def test_verdict_and_findings(data_section: DataSection, audit: Audit, page: Element) -> None:
    """An audit that fails says so, with the finding's first rows; one whose findings are allowed holds and
    names them too."""
    assert [heading.text for heading in page.of_tag("h1")] == ["my <recipe>"]
    assert audit.failed == ["leakage"]
    assert page.of_tag("h2")[0].text == "The audit does not hold"
    (finding,) = page.of_class("finding")
    assert finding.of_tag("h3")[0].text == "1 training rows are also in the evaluation rows"
    assert "leakage, fails the audit" in finding.flat
    assert finding.of_tag("li")[0].flat == "rows/a.jsonl:5 it is also in the evaluation rows"
    allowed = page_of(audit_page(replace(audit, failed=[]), "t"))
    assert allowed.of_tag("h2")[0].text == "The audit holds"
    assert "leakage, allowed by data.allow_findings" in allowed.of_class("finding")[0].flat
    clean = [replace(source, findings={}) for source in audit.report.sources]
    good = page_of(audit_page(replace(audit, failed=[], report=replace(audit.report, sources=clean)), "t"))
    assert good.of_class("finding") == []
    assert "The audit holds Nothing was found that fails it." in good.flat


def test_the_table_of_sources(audit: Audit, page: Element) -> None:
    """Each source has its row, with the report's figures under their names, and a link to its part of the
    page."""
    table = page.of_class("wide")[0]
    names = [cell.text for cell in table.of_tag("th") if cell.attributes["scope"] == "col"]
    rows = table.of_tag("tr")[1:]
    assert len(rows) == len(audit.report.sources) == 4
    for row, source in zip(rows, audit.report.sources, strict=True):
        cells = row.of_tag("td")
        assert [cell.attributes["data-label"] for cell in cells] == names[1:]
        figures = dict(zip(names, [row.of_tag("th")[0].text, *(cell.flat for cell in cells)], strict=True))
        examples = "" if source.examples_made == source.rows_read else f" {source.examples_made} examples"
        assert figures == {
            "Source": source.source,
            "Use": source.use,
            "Format": source.format,
            "Rows read": f"{source.rows_read}{examples}",
            "Kept": f"{source.rows_kept}",
            "Dropped": f"{sum(rows.count for rows in source.dropped.values())}",
            "Documents": f"{source.documents}",
            "Tokens": f"{source.tokens:,}",
            "Supervised": f"{source.supervised_tokens / source.tokens:.1%}",
            "Longest": f"{source.longest_tokens}",
            "Repeated rows": f"{source.duplicates.count}",
        }
        anchor = row.of_tag("a")[0].attributes["href"]
        (part,) = [element for element in page.inside if f"#{element.attributes.get('id')}" == anchor]
        assert part.of_tag("h3")[0].text == source.source


def test_what_became_of_rows(audit: Audit, page: Element) -> None:
    """Every drop and every other fate is there with its count, places and excerpts, and what was not read."""
    for part, source in zip(page.of_class("source"), audit.report.sources, strict=True):
        listed = {item.flat for item in part.of_tag("li")}
        for rows in [*source.dropped.values(), source.truncated, source.duplicates]:
            for place, excerpt in zip(rows.places, rows.excerpts, strict=True):
                assert " ".join(clean_for_terminal(f"{place} {excerpt}").split()) in listed
    first, _, short, _ = (part.flat for part in page.of_class("source"))
    for text in (
        "Dropped: 3 of 38 rows",
        "1 with an empty answer",
        "1 that can't be read (data.on_bad_row: skip)",
        "1 with a special token in their text",
        "1 cut to data.max_length_tokens",
        f"{audit.report.sources[0].truncated_supervised_tokens:,} supervised tokens lost where rows were cut "
        "or split",
        "2 that repeat an earlier row",
        "Columns that format alpaca doesn't read ColumnRows that have it id1",
        "Files that were not read 1 file in the folder notes <i>.md",
        "Longest documents PlaceTokens rows/a.jsonl:37256",
    ):
        assert text in first
    assert (
        "The format was detected: summarisation, because each of the first 2 rows has 'document' and "
        "'summary'." in short
    )
    assert "4 of 4 examples (from 2 rows) kept" in short


def test_more_rows_than_examples(audit: Audit) -> None:
    """Of many rows the page names the first few, and says how many there are besides."""
    rows = RowCounts()
    for number in range(1234):
        rows.add(f"row {number}", "text")
    source = replace(audit.report.sources[0], dropped={"too_long": rows})
    part = page_of(audit_page(replace(audit, report=replace(audit.report, sources=[source])), "t")).of_class(
        "source"
    )[0]
    assert (
        "1,234 longer than data.max_length_tokens row 0 text row 1 text row 2 text and 1,231 more"
        in part.flat
    )


def counted(part: Element) -> list[tuple[str, int]]:
    """The bars of a histogram on a page: which lengths, and how many documents."""
    labels, counts = ([text.text for text in part.of_class(name)] for name in ("edges", "documents"))
    return [(label, int(count.replace(",", ""))) for label, count in zip(labels, counts, strict=True)]


def expected_bars(histogram: list[int]) -> list[tuple[str, int]]:
    filled = [index for index, count in enumerate(histogram) if count]
    edges = [*LENGTH_EDGES, None]
    return [
        (
            f"{edges[index]:,} to {edges[index + 1] - 1:,}"
            if edges[index + 1]
            else f"{edges[index]:,} and more",
            histogram[index],
        )
        for index in range(filled[0], filled[-1] + 1)
    ]


def test_histograms(audit: Audit, page: Element) -> None:
    """Each source's histogram has the bars and counts of the report, from the first that isn't empty to the
    last."""
    for part, source in zip(page.of_class("source"), audit.report.sources, strict=True):
        (image,) = part.of_class("histogram")
        assert counted(image) == expected_bars(source.histogram)
        assert (
            len(image.of_class("length"))
            == len(image.of_class("bar"))
            == len(expected_bars(source.histogram))
        )
        assert image.attributes["role"] == "img"
        ids = (image.attributes["aria-labelledby"] or "").split()
        named = [element.text for element in image.inside if element.attributes.get("id") in ids]
        documents = "1 document" if source.documents == 1 else f"{source.documents} documents"
        assert named[0] == f"Tokens per document: {documents}"
        assert named[1] == "; ".join(
            f"{label} tokens: {count}" for label, count in expected_bars(source.histogram)
        )


@given(st.lists(st.integers(0, 10**7), min_size=len(LENGTH_EDGES), max_size=len(LENGTH_EDGES)).filter(any))
def test_bars(histogram: list[int]) -> None:
    """The longest bar is whole, the others are in proportion, no document is invisible, and an empty bar has
    no length."""
    made = bars(histogram)
    assert [(bar.label, bar.documents) for bar in made] == expected_bars(histogram)
    assert max(bar.length for bar in made) == 1
    for bar in made:
        assert bar.length == pytest.approx(bar.documents / max(histogram), abs=0.005)
        assert (bar.length > 0) == (bar.documents > 0)


def test_no_document() -> None:
    """A report without any document, as of streamed data, is a page as well."""
    source = SourceReport("none", "evaluation", "alpaca")
    empty = Audit(DataReport([source], 0, 0), [], NO_EPOCH, [])
    page = page_of(audit_page(empty, "t"))
    assert page.of_tag("svg")[1:] == []
    assert "No document." in page.flat
    assert "No document of data.train was prepared for this audit." in page.flat
    assert "Samples" not in page.flat


def test_epoch_and_mixture(audit: Audit, page: Element) -> None:
    """The epoch's figures and the lines about the mixture are the audit's."""
    epoch = audit.epoch
    figures = [value.text for value in page.of_tag("dd")]
    assert figures[:2] == [f"{audit.report.train_rows}", f"{audit.report.evaluation_rows}"]
    assert figures[2:] == [
        f"{epoch.tokens:,}", "3", f"{epoch.documents}", f"{epoch.tokens:,}", f"{epoch.rows}", f"{epoch.slots_used:.1%}"
    ]  # fmt: skip
    assert [line.text for line in page.of_class("mixture")[0].of_tag("li")] == audit.report.mixture != []


def test_samples(audit: Audit, page: Element) -> None:
    """Each sample's text is there to the last blank, piece by piece; what is learned is marked, a weight of
    its own shown."""
    shown = page.of_class("sample")
    assert len(shown) == len(audit.samples) == audit.report.train_rows
    for element, sample in zip(shown, audit.samples, strict=True):
        assert element.of_tag("h3")[0].text == sample.place
        assert f"{sample.supervised_tokens} learned" in element.of_class("about")[0].text
        pieces = [piece.text for piece in element.of_class("piece")]
        assert pieces == [clean_for_terminal(piece.text) for piece in sample.pieces]
        learned = [mark.of_class("piece")[0].text for mark in element.of_tag("mark")]
        assert learned == [text for text, piece in zip(pieces, sample.pieces, strict=True) if piece.weight]
        weights = [badge.text for badge in element.of_class("weight")]
        assert weights == [
            f"\N{MULTIPLICATION SIGN}{piece.weight:g}"
            for piece in sample.pieces
            if piece.weight not in (0, 1)
        ]
    assert [badge.text for badge in page.of_class("weight")] == ["\N{MULTIPLICATION SIGN}0.5"]
    assert sum("<|im_end|>" in mark.text for mark in page.of_tag("mark")) >= 30
    hidden = [element for element in shown if element.of_class("hidden")]
    assert [note.text for note in page.of_class("hidden")] == [
        "2 control characters are left out of this text."
    ]
    assert "<script>alert(1)</script> abc <img src=x onerror=alert(1)> & &lt;" in hidden[0].text


def test_long_samples_are_folded(audit: Audit) -> None:
    """A sample with much text is closed at first, a short one open."""
    samples = [AuditRow("a", 9, 0, [TokenSpan("x" * length, 9, 0.0)]) for length in (3000, 3001)]
    shown = page_of(audit_page(replace(audit, samples=samples), "t")).of_class("sample")
    assert ["open" in element.attributes for element in shown] == [True, False]


def test_nothing_is_loaded_or_run(html: str, page: Element) -> None:
    """No script, no event handler, no address but places of the page itself, and a policy that forbids the
    rest."""
    assert (
        page.of_tag("script", "link", "img", "iframe", "object", "embed", "form", "base", "use", "image")
        == []
    )
    for element in page.inside:
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "style", "xlink:href")
            assert name != "href" or (value or "").startswith("#")
    assert len(page.of_tag("style")) == 1
    assert not re.search(r"url\(|@import|https?:", page.of_tag("style")[0].text)
    assert "http:" not in html
    assert "https:" not in html
    (policy,) = (e.attributes["content"] for e in page.of_tag("meta") if "http-equiv" in e.attributes)
    assert (policy or "").startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_structure(page: Element) -> None:
    """One h1, no heading level left out, every table header with a scope, every id once, a language and a
    viewport."""
    levels = [int(element.tag[1]) for element in page.of_tag("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert {element.attributes.get("scope") for element in page.of_tag("th")} == {"col", "row"}
    ids = [element.attributes["id"] for element in page.inside if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    labels = " ".join(element.attributes.get("aria-labelledby") or "" for element in page.inside).split()
    assert set(labels) <= set(ids)
    assert page.of_tag("html")[0].attributes["lang"] == "en"
    assert "viewport" in [element.attributes.get("name") for element in page.of_tag("meta")]
    for image in page.of_tag("svg"):
        assert image.attributes.get("role") == "img" or image.attributes.get("aria-hidden") == "true"


def holding(text: str) -> Audit:
    """An audit with this text wherever a row, a file, a column or a recipe may put one."""
    rows = RowCounts(4, [text], [text])
    source = SourceReport(
        source=text, use="train", format=text, detected=text, rows_read=4, examples_made=4,
        dropped={"too_long": rows}, findings={"leakage": rows}, duplicates=rows, truncated=rows, split=rows,
        unread_columns={text: 1}, unread_files=[text], left_out_files=[text], empty_files=[text],
        noted={"keep": rows}, longest={text: 3},
    )  # fmt: skip
    samples = [
        AuditRow(text, 9, 2, [TokenSpan(text, 5, 0.0), TokenSpan(text, 2, 0.5), TokenSpan(text, 2, 1.0)])
    ]
    return Audit(DataReport([source], 4, 0, [text]), ["leakage"], NO_EPOCH, samples)


def skeleton(page: Element) -> Iterator[tuple[str, list[str]]]:
    """Every element and the names of its attributes, but the marks of newlines and tabs, and the note on
    controls."""
    for element in page.inside:
        if not {"newline", "tab", "hidden"} & set(element.classes):
            yield element.tag, sorted(element.attributes.keys() - {"open"})


MARKUP = (
    "<script>", "</script>", "</title>", "</style>", "</span>", "<!--", "-->", "<svg onload=a>", "]]>", '"',
    "'", "&", "&lt;", "&#60;", "<", "{{ 1 }}", "{% raw %}", "\u202e", "\u2066", "\x1b[31m",
    "\x1b]0;title\x07", "\x00", "\r\n", "\n", "\t", " ", "/", "\ud800",
)  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(MARKUP) | st.text(st.characters(), min_size=1, max_size=8), min_size=1, max_size=8
).map("".join)


def test_what_texts_go_through_first() -> None:
    """Every text of the page, of rows, names and the title, before it is escaped."""
    text = "secret <b>\nsecret\tsecret"
    html = audit_page(
        holding(text), text, clean=lambda text: clean_for_terminal(text).replace("secret", "<i>")
    )
    assert "secret" not in html
    assert "&lt;i&gt;" in html
    assert "<i>" not in html


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_any_text_stays_text(text: str) -> None:
    """Whatever a row or a name holds, the page has the same elements, and reads back as that text without its
    controls."""
    html = audit_page(holding(text), text)
    html.encode()
    page, clean = page_of(html), clean_for_terminal(text)
    assert list(skeleton(page)) == list(skeleton(page_of(audit_page(holding("x"), "x"))))
    assert [piece.text for piece in page.of_class("piece")] == [clean] * 3
    for name, count in (("place", 6), ("excerpt", 6)):
        assert [element.text for element in page.of_class(name)] == [clean] * count
    assert page.of_tag("h1")[0].text == clean
    assert page.of_tag("title")[0].text == f"{clean}: data audit"
    assert page.of_class("sample")[0].of_tag("h3")[0].text == clean
    assert page.of_class("mixture")[0].of_tag("li")[0].text == clean
    assert [names.of_tag("li")[0].text for names in page.of_class("names")] == [clean] * 3
    assert page.of_class("narrow")[0].of_tag("code")[0].text == clean
    assert not any(character in html for character in "\x00\x1b\r\u202e\u2066")


@needs_browser
def test_in_a_browser(html: str, audit: Audit, tmp_path: Path) -> None:
    """A browser loads the page without a word on its console, and finds the bars, the counts and every row as
    text."""
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    opened = open_page(tmp_path / "page.html", tmp_path / "profile")
    assert opened.console == []
    page = page_of(opened.document)
    assert page.of_tag("script", "img") == []
    assert not any("src" in element.attributes for element in page.inside)
    assert all((link.attributes["href"] or "").startswith("#") for link in page.of_tag("a"))
    pieces = [piece.text for piece in page.of_class("piece")]
    assert pieces == [clean_for_terminal(piece.text) for sample in audit.samples for piece in sample.pieces]
    assert any("<script>alert(1)</script>" in piece for piece in pieces)
    images = page.of_class("histogram")
    assert [counted(image) for image in images] == [
        expected_bars(source.histogram) for source in audit.report.sources
    ]


@needs_browser
def test_a_script_would_be_refused(html: str, tmp_path: Path) -> None:
    """Even a script that stood in the page would not run: the browser refuses it, and says so on the
    console."""
    smuggled = html.replace("</body>", "<script>document.body.dataset.ran = 'yes'</script></body>")
    (tmp_path / "page.html").write_text(smuggled, encoding="utf-8")
    opened = open_page(tmp_path / "page.html", tmp_path / "profile")
    assert "data-ran" not in page_of(opened.document).of_tag("body")[0].attributes
    assert "Content Security Policy" in "\n".join(opened.console)


@needs_browser
def test_no_sideways_scrolling(html: str, tmp_path: Path) -> None:
    """On a phone, a tablet and a desk, the page is no wider than its window."""
    # In frames, because a window of a browser can't be as narrow as a phone; without the policy, so that the
    # frame is read.
    measured = escape(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html))
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{measured}"></iframe>'
        for width in (320, 400, 800, 1150)
    )
    script = (
        "onload = () => { document.body.dataset.widths = Array.from(frames).map(frame => "
        "frame.document.documentElement).map(inside => inside.scrollWidth + ' in ' + "
        "inside.clientWidth).join() }"
    )
    outer = f'<!DOCTYPE html><html><body data-widths="">{frames}<script>{script}</script></body></html>'
    (tmp_path / "outer.html").write_text(outer, encoding="utf-8")
    opened = open_page(tmp_path / "outer.html", tmp_path / "profile")
    assert opened.console == []
    found = re.search(r'data-widths="(.*?)"', opened.document)
    assert found is not None
    widths = [tuple(map(int, pair.split(" in "))) for pair in found[1].split(",")]
    assert len(widths) == 4
    for needed, window in widths:
        assert needed <= window <= 1150
