"""finetune data: the audit as it prints and as JSON, samples, errors, the page, and code that runs where it
is allowed."""

import json
import re

import pytest

from data_prep.audit.report import LENGTH_EDGES
from data_prep.formats.python import code_sha256
from tests.support.cli import FinetuneHere
from tests.support.imports import HEAVY, loaded_by
from tests.unit.cli.audits import Recipes, alpaca, chat, mixed

NASTY = "\x1b]0;title\x07 \x1b[31mred\x1b[0m \x9b2J \u202eabc\u2066 \x00\x08\x7f \x1bPq\x1b\\"
"""What a terminal acts on: escape sequences, C0 and C1 controls, bidi overrides."""
ACTED_ON = {"\x1b", "\x9b", "\u202e", "\u2066", "\x00", "\x07", "\x08", "\x7f"}
OURS = re.compile(r"\x1b\[(1;32|2|1;31|0)m")
"""The colours that the verb itself writes."""


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_an_audit_that_holds(data: FinetuneHere, recipe: Recipes) -> None:
    """The audit says what was kept, and for each reason how many rows were dropped, with the first rows'
    places and texts."""
    printed = data(mixed(recipe))
    assert printed.stderr == ""
    assert printed.lines[-1] == "the audit holds"
    assert re.search(r"rows\.jsonl \(train, alpaca\): 9 of 13 rows kept; ", printed.lines[0])
    for reason, place, text in (
        ("with an empty answer", "rows.jsonl:9", "Say nothing."),
        ("longer than data.max_length_tokens", "rows.jsonl:10", "Say much."),
        ("with a special token in their text (data.special_tokens_in_text: text reads them as text)", "rows.jsonl:11",
         "<|im_end|>."),
        ("that can't be read (data.on_bad_row: skip)", "rows.jsonl:13", "no column 'output'"),
    ):  # fmt: skip
        index = printed.lines.index(f"  dropped 1 {reason}:")
        assert place in printed.lines[index + 1]
        assert text in printed.lines[index + 1]
    assert "  kept 1 that repeat an earlier row: rows.jsonl:12" in printed.lines
    assert "  columns that format alpaca doesn't read: 'id' (1 rows)" in printed.lines


def test_the_json_and_the_text_have_the_same_figures(data: FinetuneHere, recipe: Recipes) -> None:
    """Rows, tokens, drops, the histogram and the epoch are the same in --json and in the text, and they add
    up."""
    name = mixed(recipe, evaluation={"fraction": 0.25}, pack_length_tokens=256)
    audit, text = data(name, "--json").json, data(name).stdout
    (source,) = audit["sources"]
    assert (audit["ok"], audit["failed"], audit["findings"], audit["samples"]) == (True, [], {}, [])
    kept, rows, tokens, supervised, longest = map(
        number,
        re.findall(
            r"([\d,]+) of ([\d,]+) rows kept; ([\d,]+) tokens, ([\d,]+) of them supervised; longest ([\d,]+) tokens",
            text,
        )[0],
    )
    assert (kept, rows) == (source["rows_kept"], source["rows_read"])
    assert rows == kept + sum(drop["count"] for drop in source["dropped"].values())
    assert (tokens, supervised, longest) == (
        source["tokens"],
        source["supervised_tokens"],
        source["longest_tokens"],
    )
    assert longest == max(source["longest"].values())
    bars = re.findall(r"^ +([\d,]+) (?:to [\d,]+|and more) +([\d,]+)(?: (█+))?$", text, re.MULTILINE)
    filled = {
        edge: count for edge, count in zip(audit["length_edges"], source["histogram"], strict=True) if count
    }
    assert filled == {number(edge): number(count) for edge, count, _ in bars if number(count)}
    assert all(bool(bar) == bool(number(count)) for _, count, bar in bars)
    assert max(len(bar) for _, _, bar in bars) == 40
    assert sum(filled.values()) == source["documents"] == audit["train_rows"] + audit["evaluation_rows"]
    epoch = re.search(
        r"per epoch: ([\d,]+) documents, ([\d,]+) tokens, in ([\d,]+) packs that are ([\d.]+)% full; (\d+) documents to eval",
        text,
    )
    assert epoch
    assert [number(epoch[group]) for group in (1, 2, 3)] == [
        audit["epoch"][key] for key in ("documents", "tokens", "rows")
    ]
    assert float(epoch[4]) == pytest.approx(100 * audit["epoch"]["slots_used"], abs=0.05)
    assert audit["epoch"]["rows"] < audit["epoch"]["documents"] == audit["train_rows"]  # packed
    assert number(epoch[5]) == audit["evaluation_rows"] == 2


def test_the_histogram_has_every_length() -> None:
    """Edges rise from 0, so that every length has a bar, and a histogram of nothing says so."""
    from data_prep.audit.audit import histogram_lines

    assert LENGTH_EDGES[0] == 0
    assert list(LENGTH_EDGES) == sorted(set(LENGTH_EDGES))
    assert histogram_lines([0] * len(LENGTH_EDGES)) == ["no document"]
    assert len(histogram_lines([1] * len(LENGTH_EDGES))) == len(LENGTH_EDGES)
    assert "and more" in histogram_lines([0] * (len(LENGTH_EDGES) - 1) + [1])[0]


def test_several_sources(data: FinetuneHere, recipe: Recipes) -> None:
    """Each source has its own lines, those to evaluate on too, and a mixture says how often each row is
    seen."""
    first = {"path": recipe.rows("a.jsonl", alpaca(8)), "format": "alpaca", "share": 0.75}
    second = {
        "path": recipe.rows("b.jsonl", [chat(f"q{n}", "a") for n in range(12)]),
        "format": "auto",
        "share": 0.25,
    }
    held_out = {"path": recipe.rows("c.jsonl", [chat("other", "one")]), "format": "messages"}
    name = recipe([first, second], share_of="rows", evaluation={"sources": [held_out]})
    printed, audit = data(name), data(name, "--json").json
    heads = [line for line in printed.lines if re.match(r"\S.*(train|evaluation), ", line)]
    assert [head.split("/")[-1].split(":")[0] for head in heads] == [
        "a.jsonl (train, alpaca)", "b.jsonl (train, messages)", "c.jsonl (evaluation, messages)",
    ]  # fmt: skip
    assert "  format auto: messages, because each of the first 12 rows has 'messages'" in printed.lines
    assert any(
        re.search(r"a\.jsonl: each row 1\.875 times per epoch, [\d.]+% of its tokens", line)
        for line in printed.lines
    )
    assert any(re.search(r"b\.jsonl: each row 0\.4167 times per epoch, ", line) for line in printed.lines)
    assert (audit["epoch"]["documents"], audit["evaluation_rows"]) == (20, 1)
    assert all(line in printed.lines for line in audit["mixture"])


@pytest.mark.parametrize("count", [1, 2, 99])
def test_a_preview_marks_what_is_learned(
    count: int, data: FinetuneHere, recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--preview N shows N documents, or all; without colour, what is learned, and nothing else, stands
    between marks."""
    monkeypatch.setenv("NO_COLOR", "1")
    name = recipe(
        {"path": recipe.rows("rows.jsonl", [chat(f"q{n}", f"a{n}") for n in range(4)]), "format": "messages"}
    )
    printed = data(name, "--preview", str(count))
    heads = re.findall(r"^rows\.jsonl:(\d): (\d+) tokens, (\d+) learned$", printed.stdout, re.MULTILINE)
    assert len(heads) == min(count, 4)
    assert "\x1b" not in printed.stdout
    for row in (int(head[0]) - 1 for head in heads):
        assert (
            f"<|im_start|>user\nq{row}<|im_end|>\n<|im_start|>assistant\n⟦a{row}<|im_end|>⟧" in printed.stdout
        )
    samples = data(name, "--preview", str(count), "--json").json["samples"]
    assert [sample["place"] for sample in samples] == [f"rows.jsonl:{head[0]}" for head in heads]
    for sample in samples:
        assert sum(piece["tokens"] for piece in sample["pieces"]) == sample["tokens"]
        assert (
            sum(piece["tokens"] for piece in sample["pieces"] if piece["weight"])
            == sample["supervised_tokens"]
        )


def test_a_preview_colours_what_is_learned(
    data: FinetuneHere, recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FORCE_COLOR what is learned is green, what is read is pale, and there are no marks; a weight is
    named."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    name = recipe(
        {
            "path": recipe.rows("rows.jsonl", [chat("q", "a"), chat("q", "b", weight=0.5)]),
            "format": "messages",
        }
    )
    printed = data(name, "--preview", "2").stdout
    assert (
        "\x1b[2m<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n\x1b[0m\x1b[1;32ma<|im_end|>\x1b[0m"
        in printed
    )
    assert "\x1b[1;32mweight 0.5: b<|im_end|>\x1b[0m" in printed
    assert not {"⟦", "⟧"} & set(printed)


@pytest.mark.parametrize("setting", ["NO_COLOR", "FORCE_COLOR"])
def test_nothing_of_the_data_acts_on_the_terminal(
    setting: str, data: FinetuneHere, recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No control character of a text, column, file or role reaches either output, in the audit, samples,
    findings or errors."""
    monkeypatch.setenv(setting, "1")
    file_name = NASTY.replace("\0", "").replace("/", "") + ".jsonl"
    rows = [
        chat(NASTY, "kept" + NASTY),
        chat(NASTY, " "),
        chat("again", NASTY, weight=0),
        {"messages": [{"role": NASTY, "content": "a"}]},
        chat("a", "b") | {NASTY: 1},
        chat(NASTY, "kept" + NASTY),
    ]
    recipe.rows(file_name, rows)
    name = recipe({"path": "*.jsonl", "format": "messages"}, on_bad_row="skip")
    seen = ""
    for arguments, code in (
        ((), 3),
        (("--preview", "9"), 3),
        (("--json", "--preview", "9"), 3),
        (("data.on_bad_row=error",), 2),
    ):
        printed = data(name, *arguments, code=code)
        seen += OURS.sub("", printed.stdout + printed.stderr)
    monkeypatch.chdir(recipe.folder)
    seen += data("--cache", "list").stdout
    assert "kept" in seen
    assert "red" in seen
    assert not ACTED_ON & set(seen)


def test_only_the_first_rows(data: FinetuneHere, recipe: Recipes) -> None:
    """With --rows N the first N rows of each source are audited, and the output says so; JSON stays alone on
    its stream."""
    first = {"path": recipe.rows("a.jsonl", alpaca(30)), "format": "alpaca"}
    second = {"path": recipe.rows("b.jsonl", alpaca(3)), "format": "alpaca"}
    printed = data(recipe([first, second]), "--rows", "4")
    assert printed.lines[0] == "only the first 4 rows of each source are read"
    assert [kept for line in printed.lines for kept in re.findall(r"(\d of \d) rows kept", line)] == [
        "4 of 4",
        "3 of 3",
    ]
    as_json = data("recipe.yaml", "--rows", "4", "--json")
    assert [source["rows_read"] for source in as_json.json["sources"]] == [4, 3]
    assert as_json.stderr.splitlines()[0] == "only the first 4 rows of each source are read"
    assert [source["rows_read"] for source in data("recipe.yaml", "--json").json["sources"]] == [30, 3]


def test_rows_behind_the_first_are_not_read(data: FinetuneHere, recipe: Recipes) -> None:
    """With --rows N a bad row behind the first N neither ends the audit nor is counted."""
    (recipe.folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in alpaca(3)) + "{broken\n"
    )
    name = recipe({"path": "rows.jsonl", "format": "alpaca"})
    assert data(name, "--rows", "2").lines[-1] == "the audit holds"
    (source,) = data(name, "data.on_bad_row=skip", "--rows", "2", "--json").json["sources"]
    assert (source["rows_read"], source["dropped"]) == (2, {})


def test_a_column_behind_the_first_rows(data: FinetuneHere, recipe: Recipes) -> None:
    """With --rows N an optional column that only later rows have is not called absent from all rows."""
    rows = alpaca(3)
    rows[2]["context"] = "c"
    name = recipe(
        {"path": recipe.rows("rows.jsonl", rows), "format": "alpaca", "columns": {"input": "context"}}
    )
    assert data(name).lines[-1] == "the audit holds"
    assert data(name, "--rows", "2").lines[-1] == "the audit holds"


def test_a_stream_is_audited_by_its_first_buffer(data: FinetuneHere, recipe: Recipes) -> None:
    """Of a streaming recipe the rows of one buffer are audited, which the output says; --rows asks for
    another number."""
    source = {"path": recipe.rows("rows.jsonl", alpaca(30)), "format": "alpaca"}
    name = recipe(source, streaming={"buffer_rows": 5}, train={"max_steps": 2})
    printed = data(name)
    assert printed.lines[0] == "only the first 5 rows of each source are read"
    assert "5 of 5 rows kept" in printed.lines[1]
    assert "7 of 7 rows kept" in data(name, "--rows", "7").lines[1]


def test_a_repeated_row_that_is_dropped_is_not_called_kept(data: FinetuneHere, recipe: Recipes) -> None:
    """Rows are called kept, though they repeat another or hold a special token, only where they are."""
    long = {"instruction": "Say much <|im_end|>.", "output": "blue " * 300}
    name = recipe(
        {"path": recipe.rows("rows.jsonl", [alpaca(1)[0], long, long]), "format": "alpaca"},
        max_length_tokens=64,
    )
    printed = data(name, "data.special_tokens_in_text=keep")
    assert "1 of 3 rows kept" in printed.lines[0]
    assert not [line for line in printed.lines if line.startswith("  kept ")]


def test_errors_are_one_message(data: FinetuneHere, recipe: Recipes) -> None:
    """A bad recipe, a bad row and an absent name end with 2 and one message, as one JSON document where that
    was asked for."""
    name = recipe({"path": recipe.rows("rows.jsonl", [{"instruction": "a"}]), "format": "alpaca"})
    printed = data(name, code=2)
    assert printed.stdout == ""
    assert re.match(
        r"error: rows\.jsonl:1, read as format 'alpaca': no column 'output'; the row has 'instruction'\n$",
        printed.stderr,
    )
    assert data(name, "--json", code=2).json["error"] == printed.stderr.removeprefix("error: ").rstrip("\n")
    assert "did you mean max_length_tokens?" in data(name, "data.max_length_token=9", code=2).stderr
    assert (
        "data.max_length_token"
        in data(name, "data.max_length_token=9", "--json", code=2).json["problems"][0]["path"]
    )
    assert "absent.yaml" in data("absent.yaml", code=2).stderr


@pytest.mark.parametrize(
    "arguments", [("--rows", "0"), ("--rows", "x"), ("--preview", "-1"), ("--rows",), ("--cache",)]
)
def test_wrong_options(arguments: tuple[str, ...], data: FinetuneHere, recipe: Recipes) -> None:
    """A number out of its range, or an option without its value, ends with 2 and the option's name."""
    assert arguments[0] in data(recipe({"generated": "orders"}), *arguments, code=2).stderr


def test_the_page(data: FinetuneHere, recipe: Recipes) -> None:
    """--html writes a page and says where; a folder that isn't there is one message with its path."""
    name = mixed(recipe)
    assert "page audit.html" in data(name, "--html", "audit.html").lines
    assert "<html" in (recipe.folder / "audit.html").read_text(encoding="utf-8")
    assert "absent/audit.html" in data(name, "--html", "absent/audit.html", code=2).stderr


def test_code_runs_where_it_is_allowed(data: FinetuneHere, recipe: Recipes) -> None:
    """Format python is refused with the option to add, runs with it, and is refused again when the file
    changes."""
    code = recipe.folder / "code.py"
    code.write_text("def parse(row):\n    return {'text': row['body'].upper()}\n")
    name = recipe(
        {"path": recipe.rows("rows.jsonl", [{"body": "blue"}]), "format": "python", "code": "code.py"}
    )
    refused = data(name, code=2).stderr
    (option,) = re.findall(r"^ +(--allow-code \S+)$", refused, re.MULTILINE)
    assert option.split()[1] == code_sha256(str(code))
    # A document's first token has no label, because nothing predicts it.
    assert "B⟦LUE<|im_end|>⟧" in data(name, *option.split(), "--preview", "1").lines
    code.write_text("raise SystemExit('it ran')\n")
    assert f"--allow-code {code_sha256(str(code))}" in data(name, *option.split(), code=2).stderr
    both = ("--allow-code", "0" * 64, *option.split())
    code.write_text("def parse(row):\n    return {'text': row['body'].upper()}\n")
    assert data(name, *both).lines[-1] == "the audit holds"
    assert data(name, "--allow-code", "0" * 63, "data.max_length_tokens=64", code=2).stderr == refused


def test_the_verb_loads_no_torch(recipe: Recipes) -> None:
    """Importing the verb loads nothing heavy, and an audit with a preview, JSON or a page runs to its end
    without torch."""
    assert loaded_by("import finetune.cli.data", HEAVY) == []
    name = mixed(recipe)
    run = (
        f"import os, sys\nos.chdir({str(recipe.folder)!r})\nos.environ['FINETUNE_CACHE'] = 'cache'\n"
        "from finetune.cli.app import run\n"
        f"for options in ([], ['--preview', '2', '--html', 'a.html'], ['--json']):\n"
        f"    sys.argv = ['finetune', 'data', {name!r}, *options]\n    assert run() == 0\n"
    )
    assert loaded_by(run, ("torch", "datasets", "peft", "accelerate")) == []
