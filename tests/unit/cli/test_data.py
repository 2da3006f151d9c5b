"""finetune data: the audit as it prints and as JSON, what fails it, samples, and the cache of prepared data."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.formats.code import code_sha256
from data_prep.report import FINDINGS, LENGTH_EDGES
from tests.conftest import CHATML
from tests.unit.test_imports import HEAVY, loaded_by

NASTY = "\x1b]0;title\x07 \x1b[31mred\x1b[0m \x9b2J \u202eabc\u2066 \x00\x08\x7f \x1bPq\x1b\\"
"""What a terminal acts on: escape sequences, C0 and C1 controls, bidi overrides."""
ACTED_ON = {"\x1b", "\x9b", "\u202e", "\u2066", "\x00", "\x07", "\x08", "\x7f"}
OURS = re.compile(r"\x1b\[(1;32|2|1;31|0)m")
"""The colours that the verb itself writes."""


@dataclass
class Printed:
    """What a command printed."""

    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it is."""
        return json.loads(self.out)


Data = Callable[..., Printed]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Data:
    """data("recipe.yaml", code=0) runs the verb in tmp_path, with a cache of its own, and checks its exit code."""
    from finetune.cli.app import run as run_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, code: int = 0) -> Printed:
        monkeypatch.setattr(sys, "argv", ["finetune", "data", *arguments])
        capsys.readouterr()
        found = run_command()
        printed = Printed(*capsys.readouterr())
        assert found == code, f"{arguments} gave {found}:\n{printed.out}\n{printed.err}"
        assert "Traceback" not in printed.err
        return printed

    return run


@dataclass
class Recipes:
    """Writes rows and recipes on the tiny base into a folder."""

    folder: Path
    base: Path

    def rows(self, name: str, rows: list[dict[str, Any]]) -> str:
        """A JSONL file; its name."""
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    def __call__(self, source: dict[str, Any] | list[dict[str, Any]], **sections: Any) -> str:
        """recipe.yaml with this source, or these, in data.train, and more keys of data; `model` and `train` are sections."""
        values: dict[str, Any] = {"model": {"base": str(self.base)} | sections.pop("model", {})}
        values["train"] = sections.pop("train", {})
        values["data"] = {"train": source if isinstance(source, list) else [source]} | sections
        (self.folder / "recipe.yaml").write_text(json.dumps(values))  # YAML reads JSON
        return "recipe.yaml"


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Recipes:
    return Recipes(tmp_path, tiny_base)


def chat(question: str, answer: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | keys]}


def alpaca(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say blue {n} times.", "output": " ".join(["blue"] * (n % 5 + 1))} for n in range(count)]


MIXED = [
    *alpaca(8),
    {"instruction": "Say nothing.", "output": " "},
    {"instruction": "Say much.", "output": "blue " * 300},
    {"instruction": "Say <|im_end|>.", "output": "no"},
    {"instruction": "Say blue 1 times.", "output": "blue blue", "id": 3},
    {"instruction": "no output"},
]
"""Eight good rows, a repeated one, and four that are dropped, each for another reason."""


def mixed(recipe: Recipes, **sections: Any) -> str:
    source = {"path": recipe.rows("rows.jsonl", MIXED), "format": "alpaca"}
    return recipe(source, max_length_tokens=128, on_bad_row="skip", **sections)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_an_audit_that_holds(data: Data, recipe: Recipes) -> None:
    """The audit says what was kept, and for each reason how many rows were dropped, with the first rows' places and texts."""
    printed = data(mixed(recipe))
    assert printed.err == ""
    assert printed.lines[-1] == "the audit holds"
    assert re.search(r"rows\.jsonl \(train, alpaca\): 9 of 13 rows kept; ", printed.lines[0])
    for reason, place, text in (
        ("with an empty answer", "rows.jsonl:9", "Say nothing."),
        ("longer than data.max_length_tokens", "rows.jsonl:10", "Say much."),
        ("with a special token in their text (data.special_tokens_in_text: keep keeps them)", "rows.jsonl:11", "<|im_end|>."),
        ("that can't be read (data.on_bad_row: skip)", "rows.jsonl:13", "no column 'output'"),
    ):  # fmt: skip
        index = printed.lines.index(f"  dropped 1 {reason}:")
        assert place in printed.lines[index + 1]
        assert text in printed.lines[index + 1]
    assert "  kept 1 that repeat an earlier row: rows.jsonl:12" in printed.lines
    assert "  columns that format alpaca doesn't read: 'id' (1 rows)" in printed.lines


def test_the_json_and_the_text_have_the_same_figures(data: Data, recipe: Recipes) -> None:
    """Rows, tokens, drops, the histogram and the epoch are the same in --json and in the text, and they add up."""
    name = mixed(recipe, evaluation={"fraction": 0.25}, pack_length_tokens=256)
    audit, text = data(name, "--json").json, data(name).out
    (source,) = audit["sources"]
    assert (audit["ok"], audit["failed"], audit["findings"], audit["samples"]) == (True, [], {}, [])
    kept, rows, tokens, supervised, longest = map(
        number,
        re.findall(
            r"([\d,]+) of ([\d,]+) rows kept; ([\d,]+) tokens, ([\d,]+) of them supervised; longest ([\d,]+) tokens", text
        )[0],
    )
    assert (kept, rows) == (source["rows_kept"], source["rows_read"])
    assert rows == kept + sum(drop["count"] for drop in source["dropped"].values())
    assert (tokens, supervised, longest) == (source["tokens"], source["supervised_tokens"], source["longest_tokens"])
    assert longest == max(source["longest"].values())
    bars = re.findall(r"^ +([\d,]+) (?:to [\d,]+|and more) +([\d,]+)(?: (█+))?$", text, re.MULTILINE)
    filled = {edge: count for edge, count in zip(audit["length_edges"], source["histogram"], strict=True) if count}
    assert filled == {number(edge): number(count) for edge, count, _ in bars if number(count)}
    assert all(bool(bar) == bool(number(count)) for _, count, bar in bars)
    assert max(len(bar) for _, _, bar in bars) == 40
    assert sum(filled.values()) == source["documents"] == audit["train_rows"] + audit["evaluation_rows"]
    epoch = re.search(
        r"an epoch: ([\d,]+) documents, ([\d,]+) tokens, in ([\d,]+) packs that are ([\d.]+)% full; (\d+) documents to eval",
        text,
    )
    assert epoch
    assert [number(epoch[group]) for group in (1, 2, 3)] == [audit["epoch"][key] for key in ("documents", "tokens", "rows")]
    assert float(epoch[4]) == pytest.approx(100 * audit["epoch"]["slots_used"], abs=0.05)
    assert audit["epoch"]["rows"] < audit["epoch"]["documents"] == audit["train_rows"]  # packed
    assert number(epoch[5]) == audit["evaluation_rows"] == 2


def test_the_histogram_has_every_length() -> None:
    """Edges rise from 0, so that every length has a bar, and a histogram of nothing says so."""
    from data_prep.audit import histogram_lines

    assert LENGTH_EDGES[0] == 0
    assert list(LENGTH_EDGES) == sorted(set(LENGTH_EDGES))
    assert histogram_lines([0] * len(LENGTH_EDGES)) == ["no document"]
    assert len(histogram_lines([1] * len(LENGTH_EDGES))) == len(LENGTH_EDGES)
    assert "and more" in histogram_lines([0] * (len(LENGTH_EDGES) - 1) + [1])[0]


def test_several_sources(data: Data, recipe: Recipes) -> None:
    """Each source has its own lines, those to evaluate on too, and a mixture says how often each row is seen."""
    first = {"path": recipe.rows("a.jsonl", alpaca(8)), "format": "alpaca", "share": 0.75}
    second = {"path": recipe.rows("b.jsonl", [chat(f"q{n}", "a") for n in range(12)]), "format": "auto", "share": 0.25}
    held_out = {"path": recipe.rows("c.jsonl", [chat("other", "one")]), "format": "messages"}
    name = recipe([first, second], share_of="rows", evaluation={"sources": [held_out]})
    printed, audit = data(name), data(name, "--json").json
    heads = [line for line in printed.lines if re.match(r"\S.*(train|evaluation), ", line)]
    assert [head.split("/")[-1].split(":")[0] for head in heads] == [
        "a.jsonl (train, alpaca)", "b.jsonl (train, messages)", "c.jsonl (evaluation, messages)",
    ]  # fmt: skip
    assert "  format auto: messages, because each of the first 12 rows has 'messages'" in printed.lines
    assert any(re.search(r"a\.jsonl: each row 1\.875 times an epoch, [\d.]+% of its tokens", line) for line in printed.lines)
    assert any(re.search(r"b\.jsonl: each row 0\.4167 times an epoch, ", line) for line in printed.lines)
    assert (audit["epoch"]["documents"], audit["evaluation_rows"]) == (20, 1)
    assert all(line in printed.lines for line in audit["mixture"])


@pytest.mark.parametrize("count", [1, 2, 99])
def test_a_preview_marks_what_is_learned(count: int, data: Data, recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """--preview N shows N documents, or all; without colour, what is learned, and nothing else, stands between marks."""
    monkeypatch.setenv("NO_COLOR", "1")
    name = recipe({"path": recipe.rows("rows.jsonl", [chat(f"q{n}", f"a{n}") for n in range(4)]), "format": "messages"})
    printed = data(name, "--preview", str(count))
    heads = re.findall(r"^rows\.jsonl:(\d): (\d+) tokens, (\d+) learned$", printed.out, re.MULTILINE)
    assert len(heads) == min(count, 4)
    assert "\x1b" not in printed.out
    for row in (int(head[0]) - 1 for head in heads):
        assert f"<|im_start|>user\nq{row}<|im_end|>\n<|im_start|>assistant\n⟦a{row}<|im_end|>⟧" in printed.out
    samples = data(name, "--preview", str(count), "--json").json["samples"]
    assert [sample["place"] for sample in samples] == [f"rows.jsonl:{head[0]}" for head in heads]
    for sample in samples:
        assert sum(piece["tokens"] for piece in sample["pieces"]) == sample["tokens"]
        assert sum(piece["tokens"] for piece in sample["pieces"] if piece["weight"]) == sample["supervised_tokens"]


def test_a_preview_colours_what_is_learned(data: Data, recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With FORCE_COLOR what is learned is green, what is read is pale, and there are no marks; a weight is named."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    name = recipe({"path": recipe.rows("rows.jsonl", [chat("q", "a"), chat("q", "b", weight=0.5)]), "format": "messages"})
    printed = data(name, "--preview", "2").out
    assert "\x1b[2m<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n\x1b[0m\x1b[1;32ma<|im_end|>\x1b[0m" in printed
    assert "\x1b[1;32mweight 0.5: b<|im_end|>\x1b[0m" in printed
    assert not {"⟦", "⟧"} & set(printed)


@pytest.mark.parametrize("setting", ["NO_COLOR", "FORCE_COLOR"])
def test_nothing_of_the_data_acts_on_the_terminal(
    setting: str, data: Data, recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No control character of a text, column, file or role reaches either output, in the audit, samples, findings or errors."""
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
        seen += OURS.sub("", printed.out + printed.err)
    monkeypatch.chdir(recipe.folder)
    seen += data("--cache", "list").out
    assert "kept" in seen
    assert "red" in seen
    assert not ACTED_ON & set(seen)


def test_only_the_first_rows(data: Data, recipe: Recipes) -> None:
    """With --rows N the first N rows of each source are audited, and the output says so; JSON stays alone on its stream."""
    first = {"path": recipe.rows("a.jsonl", alpaca(30)), "format": "alpaca"}
    second = {"path": recipe.rows("b.jsonl", alpaca(3)), "format": "alpaca"}
    printed = data(recipe([first, second]), "--rows", "4")
    assert printed.lines[0] == "only the first 4 rows of each source are read"
    assert [kept for line in printed.lines for kept in re.findall(r"(\d of \d) rows kept", line)] == ["4 of 4", "3 of 3"]
    as_json = data("recipe.yaml", "--rows", "4", "--json")
    assert [source["rows_read"] for source in as_json.json["sources"]] == [4, 3]
    assert as_json.err.splitlines()[0] == "only the first 4 rows of each source are read"
    assert [source["rows_read"] for source in data("recipe.yaml", "--json").json["sources"]] == [30, 3]


def test_rows_behind_the_first_are_not_read(data: Data, recipe: Recipes) -> None:
    """With --rows N a bad row behind the first N neither ends the audit nor is counted."""
    (recipe.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca(3)) + "{broken\n")
    name = recipe({"path": "rows.jsonl", "format": "alpaca"})
    assert data(name, "--rows", "2").lines[-1] == "the audit holds"
    (source,) = data(name, "data.on_bad_row=skip", "--rows", "2", "--json").json["sources"]
    assert (source["rows_read"], source["dropped"]) == (2, {})


def test_a_column_behind_the_first_rows(data: Data, recipe: Recipes) -> None:
    """With --rows N an optional column that only later rows have is not called absent from all rows."""
    rows = alpaca(3)
    rows[2]["context"] = "c"
    name = recipe({"path": recipe.rows("rows.jsonl", rows), "format": "alpaca", "columns": {"input": "context"}})
    assert data(name).lines[-1] == "the audit holds"
    assert data(name, "--rows", "2").lines[-1] == "the audit holds"


def test_a_stream_is_audited_by_its_first_buffer(data: Data, recipe: Recipes) -> None:
    """Of a streaming recipe the rows of one buffer are audited, which the output says; --rows asks for another number."""
    source = {"path": recipe.rows("rows.jsonl", alpaca(30)), "format": "alpaca"}
    name = recipe(source, streaming={"buffer_rows": 5}, train={"max_steps": 2})
    printed = data(name)
    assert printed.lines[0] == "only the first 5 rows of each source are read"
    assert "5 of 5 rows kept" in printed.lines[1]
    assert "7 of 7 rows kept" in data(name, "--rows", "7").lines[1]


@dataclass
class Found:
    """Rows and a recipe's sections that one finding is made in."""

    rows: list[dict[str, Any]]
    place: str
    says: str
    model: dict[str, Any]
    evaluation: bool = False


CASES = {
    "no_supervised_token": Found(
        [chat("q", "a"), chat("q", "b", weight=0)], "rows.jsonl:2", "it has no token that is learned", {}
    ),
    "unsupervised_end_of_turn": Found(
        [chat("q", "a")], "rows.jsonl:1", "(llama3) writes it ends in 'a<|eot_id|>', which is no special token of",
        {"chat_template": "llama3"},
    ),
    "leakage": Found(
        [chat("q", "a"), chat("Other ", "ANSWER")], "rows.jsonl:2", "it also stands in the evaluation rows", {}, evaluation=True
    ),
    "double_bos": Found(
        [chat("q", "a")], "rows.jsonl:1", "it begins with <|im_start|> twice; remove one of the two",
        {"chat_template": "./double.jinja"},
    ),
}  # fmt: skip


def with_findings(recipe: Recipes, *names: str) -> str:
    """A recipe that these findings are made in."""
    (recipe.folder / "double.jinja").write_text("{{ bos_token }}" + CHATML)
    cases = [CASES[name] for name in names]
    rows = [row for case in cases for row in case.rows]
    held_out = {"path": recipe.rows("held_out.jsonl", [chat("other", "answer")]), "format": "messages"}
    sections = {"evaluation": {"sources": [held_out]}} if any(case.evaluation for case in cases) else {}
    model = {key: value for case in cases for key, value in case.model.items()}
    return recipe({"path": recipe.rows("rows.jsonl", rows), "format": "messages"}, model=model, **sections)


def test_every_finding_has_its_case() -> None:
    """The table of findings and the cases of this file name the same ones."""
    assert set(CASES) == set(FINDINGS)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_fails_the_audit(finding: str, data: Data, recipe: Recipes) -> None:
    """The audit ends with 3 and says which finding, in how many rows, and where; --json says the same in one document."""
    name, case = with_findings(recipe, finding), CASES[finding]
    printed = data(name, code=3)
    index = printed.lines.index(f"{finding}: 1 {FINDINGS[finding]} (fails the audit)")
    assert printed.lines[index + 1].startswith(f"  {case.place}: ")
    assert case.says in printed.lines[index + 1]
    assert "the audit holds" not in printed.out
    assert printed.err.startswith(f"error: the audit fails: {finding}. ")
    as_json = data(name, "--json", code=3)
    audit = as_json.json
    assert (audit["ok"], audit["failed"], audit["findings"]) == (False, [finding], {finding: 1})
    assert sum(finding in source["findings"] for source in audit["sources"]) == 1
    assert "error" not in as_json.err


@pytest.mark.parametrize("finding", FINDINGS)
def test_an_allowed_finding_fails_nothing(finding: str, data: Data, recipe: Recipes) -> None:
    """What the message of a failed audit advises to write makes the audit hold; the finding is still reported."""
    name = with_findings(recipe, finding)
    (advised,) = re.findall(r"write (data\.allow_findings: \[.*?\])", data(name, code=3).err)
    printed = data(name, advised.replace(": ", "=", 1))
    assert printed.lines[-1] == "the audit holds"
    assert f"{finding}: 1 {FINDINGS[finding]} (allowed by data.allow_findings)" in printed.lines
    audit = data(name, f"data.allow_findings=[{finding}]", "--json").json
    assert (audit["ok"], audit["failed"], audit["findings"]) == (True, [], {finding: 1})


def test_every_finding_at_once(data: Data, recipe: Recipes) -> None:
    """All findings of an audit are named, and one that is left when the others are allowed still fails it."""
    name = with_findings(recipe, "no_supervised_token", "leakage", "double_bos")
    assert set(data(name, "--json", code=3).json["failed"]) == {"no_supervised_token", "leakage", "double_bos"}
    audit = data(name, "data.allow_findings=[leakage, double_bos]", "--json", code=3).json
    assert audit["failed"] == ["no_supervised_token"]
    assert set(audit["findings"]) == {"no_supervised_token", "leakage", "double_bos"}


def test_leakage_can_be_dropped_or_kept(data: Data, recipe: Recipes) -> None:
    """With data.clean.leakage drop the row is dropped with its reason; with keep nothing is said; both audits hold."""
    name = with_findings(recipe, "leakage")
    dropped = data(name, "data.clean.leakage=drop")
    assert "  dropped 1 that also stand in the evaluation rows:" in dropped.lines
    assert data(name, "data.clean.leakage=keep", "--json").json["findings"] == {}


def test_a_repeated_row_that_is_dropped_is_not_called_kept(data: Data, recipe: Recipes) -> None:
    """Rows are called kept, though they repeat another or hold a special token, only where they are."""
    long = {"instruction": "Say much <|im_end|>.", "output": "blue " * 300}
    name = recipe({"path": recipe.rows("rows.jsonl", [alpaca(1)[0], long, long]), "format": "alpaca"}, max_length_tokens=64)
    printed = data(name, "data.special_tokens_in_text=keep")
    assert "1 of 3 rows kept" in printed.lines[0]
    assert not [line for line in printed.lines if line.startswith("  kept ")]


def test_errors_are_one_message(data: Data, recipe: Recipes) -> None:
    """A bad recipe, a bad row and an absent name end with 2 and one message, as one JSON document where that was asked for."""
    name = recipe({"path": recipe.rows("rows.jsonl", [{"instruction": "a"}]), "format": "alpaca"})
    printed = data(name, code=2)
    assert printed.out == ""
    assert re.match(
        r"error: rows\.jsonl:1, read as format 'alpaca': no column 'output'; the row has 'instruction'\n$", printed.err
    )
    assert data(name, "--json", code=2).json["error"] == printed.err.removeprefix("error: ").rstrip("\n")
    assert "did you mean max_length_tokens?" in data(name, "data.max_length_token=9", code=2).err
    assert "data.max_length_token" in data(name, "data.max_length_token=9", "--json", code=2).json["problems"][0]["path"]
    assert "absent.yaml" in data("absent.yaml", code=2).err


@pytest.mark.parametrize("arguments", [("--rows", "0"), ("--rows", "x"), ("--preview", "-1"), ("--rows",), ("--cache",)])
def test_wrong_options(arguments: tuple[str, ...], data: Data, recipe: Recipes) -> None:
    """A number out of its range, or an option without its value, ends with 2 and the option's name."""
    assert arguments[0] in data(recipe({"generated": "orders"}), *arguments, code=2).err


def test_the_page(data: Data, recipe: Recipes) -> None:
    """--html writes a page and says where; a folder that isn't there is one message with its path."""
    name = mixed(recipe)
    assert "page audit.html" in data(name, "--html", "audit.html").lines
    assert "<html" in (recipe.folder / "audit.html").read_text(encoding="utf-8")
    assert "absent/audit.html" in data(name, "--html", "absent/audit.html", code=2).err


def test_prepared_data_are_found_again(data: Data, recipe: Recipes) -> None:
    """A second audit of the same rows comes from the cache, says so, and says the same; a changed row is prepared anew."""
    name = mixed(recipe)
    first, second = data(name), data(name)
    assert second.lines == ["from the cache: these data were prepared before", *first.lines]
    as_json = data(name, "--json")
    assert as_json.err == "from the cache: these data were prepared before\n"
    assert as_json.json["ok"]
    recipe.rows("rows.jsonl", [*MIXED, alpaca(1)[0]])
    assert "10 of 14 rows kept" in data(name).lines[0]


def test_the_cache_is_listed_and_cleared(data: Data, recipe: Recipes) -> None:
    """--cache list names each entry with its documents and sources, newest first; clear deletes them and nothing else."""
    listed = data("--cache", "list")
    assert listed.lines[-1].startswith("0 prepared data sets, ")
    assert data("--cache", "list", "--json").json == {"folder": str(recipe.folder / "cache" / "data"), "entries": []}
    data(mixed(recipe))
    data(recipe({"generated": "orders", "rows": 5}))
    kept = recipe.folder / "cache" / "bases" / "x"
    kept.mkdir(parents=True)
    first, second, last = data("--cache", "list").lines
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +[\d.]+ MB +5 documents  orders/train", first)
    assert re.search(r" 9 documents  .*rows\.jsonl$", second)
    assert last.startswith("2 prepared data sets, ")
    entries = data("--cache", "list", "--json").json["entries"]
    assert [entry["rows"] for entry in entries] == [5, 9]
    assert all(Path(entry["folder"]).is_dir() for entry in entries)
    cleared = data("--cache", "clear", "--json").json
    assert cleared["deleted"] == 2
    assert cleared["bytes"] == sum(entry["bytes"] for entry in entries) > 0
    assert data("--cache", "list").lines[-1].startswith("0 prepared data sets, ")
    assert kept.is_dir()
    data(mixed(recipe))
    folder = recipe.folder / "cache" / "data"
    assert data("--cache", "clear").lines == [f"deleted 1 prepared data sets, 0.0 MB, from {folder}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cache", "lst"),
        ("--cache", ""),
        ("--cache", "list", "recipe.yaml"),
        ("recipe.yaml", "--cache", "clear"),
        ("recipe.yaml", "data.max_length_tokens=64", "--cache", "clear"),
        (),
        ("--json",),
    ],
)
def test_a_cache_or_a_recipe(arguments: tuple[str, ...], data: Data, recipe: Recipes) -> None:
    """A wrong word for --cache, one beside a recipe, and neither of the two end with 2 and the words that are expected."""
    mixed(recipe)
    printed = data(*arguments, code=2)
    assert "finetune data --cache list" in printed.out + printed.err
    assert not (recipe.folder / "cache").exists()


@pytest.mark.parametrize("options", [("--rows", "3"), ("--preview", "2"), ("--html", "audit.html"), ("--allow-code", "0" * 64)])
def test_an_option_beside_the_cache(options: tuple[str, ...], data: Data, recipe: Recipes) -> None:
    """An option that --cache has no use for is refused, not ignored."""
    assert options[0] in data("--cache", "list", *options, code=2).err


def test_code_runs_where_it_is_allowed(data: Data, recipe: Recipes) -> None:
    """Format python is refused with the option to add, runs with it, and is refused again when the file changes."""
    code = recipe.folder / "code.py"
    code.write_text("def parse(row):\n    return {'text': row['body'].upper()}\n")
    name = recipe({"path": recipe.rows("rows.jsonl", [{"body": "blue"}]), "format": "python", "code": "code.py"})
    refused = data(name, code=2).err
    (option,) = re.findall(r"^ +(--allow-code \S+)$", refused, re.MULTILINE)
    assert option.split()[1] == code_sha256(str(code))
    # A document's first token has no label, because nothing predicts it.
    assert "B⟦LUE<|im_end|>⟧" in data(name, *option.split(), "--preview", "1").lines
    code.write_text("raise SystemExit('it ran')\n")
    assert f"--allow-code {code_sha256(str(code))}" in data(name, *option.split(), code=2).err
    both = ("--allow-code", "0" * 64, *option.split())
    code.write_text("def parse(row):\n    return {'text': row['body'].upper()}\n")
    assert data(name, *both).lines[-1] == "the audit holds"
    assert data(name, "--allow-code", "0" * 63, "data.max_length_tokens=64", code=2).err == refused


def test_the_verb_loads_no_torch(recipe: Recipes) -> None:
    """Importing the verb loads nothing heavy, and an audit with a preview, JSON or a page runs to its end without torch."""
    assert loaded_by("import finetune.cli.data", HEAVY) == []
    name = mixed(recipe)
    run = (
        f"import os, sys\nos.chdir({str(recipe.folder)!r})\nos.environ['FINETUNE_CACHE'] = 'cache'\n"
        "from finetune.cli.app import run\n"
        f"for options in ([], ['--preview', '2', '--html', 'a.html'], ['--json']):\n"
        f"    sys.argv = ['finetune', 'data', {name!r}, *options]\n    assert run() == 0\n"
    )
    assert loaded_by(run, ("torch", "datasets", "peft", "accelerate")) == []
