"""Every file of the shared real data sets goes through `finetune data`, with a recipe as its user would write
it."""

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Result
from tests.support.models import SHARED

DATA = SHARED / "data"
BASE = SHARED / "models" / "stories260k"
TURNS = ["<|im_start|>", "<|im_end|>"]
MODEL = {"base": str(BASE), "chat_template": "chatml", "new_tokens": TURNS}
"""A real tokenizer (512 tokens, no template of its own), with ChatML's turns added."""

FinetuneHere = Callable[..., Result]
TEMPLATE = {"prompt": "{{ text }}\n{{ test_list | join('\n') }}", "completion": "{{ code }}"}
DPO_CHOSEN = {
    "prompt": "{% for turn in conversations %}{{ turn.from }}: {{ turn.value }}\n{% endfor %}",
    "completion": "{{ chosen.value }}",
}


@dataclass(frozen=True)
class File:
    """How a file is read, and what becomes of its rows."""

    name: str
    options: dict[str, Any]
    """Of its source, beside the path."""
    rows: int
    """How many the file has, by its README."""
    examples: int | None = None
    """How many are made of them, where that isn't one a row."""
    dropped: frozenset[str] = field(default=frozenset())
    """For which reasons rows are dropped."""
    repeated: bool = False
    """Whether a row repeats an earlier one."""
    unread: tuple[str, ...] = ()
    """Columns that the format doesn't read."""
    refused: str = ""
    """What the verb says where it refuses the file."""
    seen: bool = True
    """False where the file was absent when this table was written: what is dropped or repeated isn't
    known."""


def translation(language: str) -> dict[str, Any]:
    return {"format": "translation", "columns": {"source": "en", "target": language}}


LONG = frozenset({"too_long"})
NO_PAIRS = "of its rows are pairs of a chosen and a rejected answer, answers that were judged"
ALPACA, SHAREGPT, QUESTIONS, TEXT = (
    {"format": name} for name in ("alpaca", "sharegpt", "question_answer", "text")
)
FILES = [
    File("instruct/lf_alpaca_en_demo.json", ALPACA, 999, repeated=True),
    File("instruct/lf_identity.json", ALPACA, 91),
    File("instruct/rasbt_instruction-data.json", ALPACA, 1100),
    File("chat/lf_glaive_toolcall_en_demo.json", SHAREGPT, 300, dropped=LONG, repeated=True),
    File("chat/lf_v1_sft_demo.jsonl", {"format": "messages"}, 500, repeated=True),
    File("chat/fastchat_dummy_conversation.json", SHAREGPT, 500, unread=("id",)),
    File("preference/lf_dpo_en_demo.json", {"format": "preference"}, 300, refused=f"300 {NO_PAIRS}"),
    File("preference/lf_dpo_en_demo.json", {"format": "auto"}, 300, refused=f"300 {NO_PAIRS}"),
    File("preference/lf_dpo_en_demo.json", {"format": "template", "template": DPO_CHOSEN}, 300, dropped=LONG, repeated=True),
    File("preference/rasbt_instruction-data-with-preference.json", {"format": "preference"}, 1100,
         refused="chosen and rejected", seen=False),
    File("preference/rasbt_instruction-data-with-preference.json", ALPACA | {"columns": {"output": "chosen"}}, 1100,
         unread=("output", "rejected"), seen=False),
    File("pretrain/lf_c4_demo.jsonl", TEXT, 300, dropped=LONG),
    File("pretrain/the-verdict.txt", TEXT, 83),
    File("math/gsm8k_train.jsonl", QUESTIONS, 7473, seen=False),
    File("math/gsm8k_test.jsonl", QUESTIONS, 1319),
    File("code/mbpp.jsonl", {"format": "template", "template": TEMPLATE}, 974, dropped=LONG),
    File("code/mbpp.jsonl", {"format": "prompt_completion", "columns": {"prompt": "text", "completion": "code"}}, 974,
         repeated=True, unread=("task_id", "test_setup_code", "test_list", "challenge_test_list")),
    File("qa/xquad.en.json", QUESTIONS, 48, 1190, LONG, repeated=True, unread=("title",)),
    *(File(f"qa/xquad.{language}.json", QUESTIONS, 48, 1190, unread=("title",), seen=False)
      for language in ("de", "es", "zh")),
    File("translation/xquad_en-es.jsonl", translation("es"), 1430, dropped=LONG, repeated=True, unread=("kind", "id")),
    File("translation/xquad_en-de.jsonl", translation("de"), 1430, unread=("kind", "id"), seen=False),
    File("sentiment/sentence_polarity.jsonl", {"format": "classification"}, 10662),
    File("sentiment/sentence_polarity.zip", TEXT, 0, refused="sentence_polarity.zip ends in '.zip', expected .json, .jsonl,"),
    File("summarisation/scitldr_A_dev.jsonl", {"format": "summarisation"}, 619, 1453, repeated=True,
         unread=("source_labels", "rouge_scores", "paper_id", "title")),
]  # fmt: skip
"""Those of the README; a few are not everywhere, and are skipped where they are absent."""


def shared(name: str) -> str:
    """The path of a shared file, or of several by a glob; the test is skipped where there is none, or no
    tokenizer."""
    for path in (BASE / "tokenizer.json", *([] if "*" in name else [DATA / name])):
        if not path.exists():
            pytest.skip(f"{path} is not here")
    return str(DATA / name)


@pytest.fixture
def audit(tmp_path: Path, finetune_here: FinetuneHere) -> Callable[..., Result]:
    """audit(sources, "--json", code=0, model={...}, **data) runs `finetune data` on a recipe of these
    sources."""

    def run(
        sources: list[dict[str, Any]], *options: str, code: int = 0, model: Any = None, **section: Any
    ) -> Result:
        values = {"model": model or MODEL, "data": {"train": sources} | section}
        (tmp_path / "recipe.yaml").write_text(json.dumps(values))  # YAML reads JSON
        return finetune_here("data", "recipe.yaml", *options, code=code)

    return run


def test_every_file_is_in_the_table() -> None:
    """No file of the shared data is missing from the table of this module."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here")
    there = {path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file()}
    assert there - {"README.md"} <= {file.name for file in FILES}
    assert there & {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.name}-{file.options['format']}")
def test_every_row_is_accounted_for(file: File, audit: Callable[..., Result]) -> None:
    """Each row is kept, or dropped for a reason that is said; each kept one has an answer that ends; the
    audit holds."""
    source = {"path": shared(file.name)} | file.options
    if file.refused:
        assert file.refused in audit([source], code=2).stderr
        return
    said = json.loads(audit([source], "--json", "--preview", "5").stdout)
    (report,) = said["sources"]
    assert (report["rows_read"], report["examples_made"]) == (file.rows, file.examples or file.rows)
    assert report["examples_made"] == report["rows_kept"] + sum(
        drop["count"] for drop in report["dropped"].values()
    )
    if file.seen:
        assert set(report["dropped"]) == file.dropped
        assert bool(report["duplicates"]["count"]) == file.repeated
    assert set(report["unread_columns"]) == set(file.unread)
    assert 0 < report["supervised_tokens"] <= report["tokens"] - report["documents"]
    assert sum(report["histogram"]) == report["documents"] == report["rows_kept"] == said["train_rows"]
    assert (said["ok"], said["findings"]) == (True, {})
    end = "</s>" if file.options["format"] in ("text", "prompt_completion") else "<|im_end|>"
    for sample in said["samples"]:
        learned = [piece["text"] for piece in sample["pieces"] if piece["weight"]]
        assert learned[-1].endswith(end)
        assert learned[-1].removesuffix(end).strip()
        assert "<|im_start|>" not in "".join(learned)


def test_the_audit_fits_a_screen(audit: Callable[..., Result]) -> None:
    """The text of an audit names its file, ends in `the audit holds`, and has fewer than 40 lines for a
    file."""
    printed = audit([{"path": shared("chat/lf_v1_sft_demo.jsonl"), "format": "messages"}]).stdout
    assert "lf_v1_sft_demo.jsonl (train, messages): 500 of 500 rows kept; " in printed
    assert printed.endswith("the audit holds\n")
    assert len(printed.splitlines()) < 40


def test_tool_calls_are_learned(audit: Callable[..., Result]) -> None:
    """Calls of the shared conversations are learned as ChatML writes them; results and tools never are."""
    source = {"path": shared("chat/lf_glaive_toolcall_en_demo.json"), "format": "sharegpt"}
    samples = json.loads(audit([source], "--json", "--preview", "300", max_length_tokens=16384).stdout)[
        "samples"
    ]
    learned = [piece["text"] for sample in samples for piece in sample["pieces"] if piece["weight"]]
    read = [piece["text"] for sample in samples for piece in sample["pieces"] if not piece["weight"]]
    assert len(samples) == 300
    assert sum("<tool_call>" in text for text in learned) == 211
    assert not any("<tool_response>" in text or "<tools>" in text for text in learned)
    assert sum(text.count("<tool_response>") for text in read) == 211
    assert sum("<tools>" in text for text in read) == 191


def test_a_template_without_tools_is_refused(audit: Callable[..., Result]) -> None:
    """Tool calls with a template that has no form for them end with 2, the row's place, the template and what
    it lacks."""
    source = {"path": shared("chat/lf_glaive_toolcall_en_demo.json"), "format": "sharegpt"}
    said = audit([source], code=2, model={"base": str(BASE), "chat_template": "llama2"}).stderr
    assert re.match(
        r"error: lf_glaive_toolcall_en_demo\.json row 1: the chat template \(llama2\) .*\btool\b", said
    )


def test_turns_without_tokens_are_a_finding(audit: Callable[..., Result]) -> None:
    """ChatML on a tokenizer without its tokens is found in every row, exit 3; the finding's advice mends
    it."""
    source = {"path": shared("chat/fastchat_dummy_conversation.json"), "format": "sharegpt"}
    model = {"base": str(BASE), "chat_template": "chatml"}
    found = audit([source], code=3, model=model)
    rows = len(json.loads(Path(source["path"]).read_text()))
    assert (
        f"unsupervised_end_of_turn: {rows:,} rows have an answer that doesn't end in a special token"
        in found.stdout
    )
    assert "add the template's end-of-turn token to model.new_tokens" in found.stdout
    assert "the audit fails: unsupervised_end_of_turn" in found.stderr
    audit([source], model=model | {"new_tokens": TURNS})


@pytest.mark.parametrize("template", ["llama2", "alpaca", "mistral", "zephyr"])
def test_templates_that_need_no_new_token(template: str, audit: Callable[..., Result]) -> None:
    """Templates whose turns end in the tokenizer's own end token need no new one: the audit holds, and no row
    is lost."""
    source = {"path": shared("chat/lf_v1_sft_demo.jsonl"), "format": "messages"}
    said = json.loads(audit([source], "--json", model={"base": str(BASE), "chat_template": template}).stdout)
    assert (said["sources"][0]["rows_kept"], said["findings"]) == (500, {})


def test_rows_that_leak_are_found(audit: Callable[..., Result]) -> None:
    """Evaluating on a set that was made of the training set is a finding of hundreds of rows, exit 3; drop
    leaves them out."""
    train = {"path": shared("instruct/lf_alpaca_en_demo.json"), "format": "alpaca"}
    held_out = {"sources": [{"path": shared("chat/lf_v1_sft_demo.jsonl"), "format": "messages"}]}
    found = json.loads(audit([train], "--json", code=3, evaluation=held_out).stdout)
    assert found["failed"] == ["leakage"]
    assert found["findings"]["leakage"] > 250
    dropped = json.loads(audit([train], "--json", evaluation=held_out, clean={"leakage": "drop"}).stdout)
    assert dropped["sources"][0]["dropped"]["leakage"]["count"] == found["findings"]["leakage"]
    assert dropped["train_rows"] == 999 - found["findings"]["leakage"]


def test_what_is_repeated_can_be_dropped(audit: Callable[..., Result]) -> None:
    """Rows counted as repeated are those that data.clean.duplicates: drop drops; near duplicates go with
    them."""
    source = {"path": shared("chat/lf_glaive_toolcall_en_demo.json"), "format": "sharegpt"}
    (kept,) = json.loads(audit([source], "--json", max_length_tokens=16384).stdout)["sources"]
    clean = {"duplicates": "drop", "near_duplicates": 0.8}
    (cleaned,) = json.loads(audit([source], "--json", max_length_tokens=16384, clean=clean).stdout)["sources"]
    assert (
        kept["duplicates"]["count"]
        == cleaned["dropped"]["duplicate"]["count"]
        > cleaned["duplicates"]["count"]
        == 0
    )
    assert cleaned["dropped"]["near_duplicate"]["count"] > 0
    assert (
        kept["rows_kept"]
        == 300
        == cleaned["rows_kept"] + sum(drop["count"] for drop in cleaned["dropped"].values())
    )


def test_folders_globs_and_mixtures(audit: Callable[..., Result]) -> None:
    """A folder, a glob and a file in one recipe are mixed by their shares of the tokens and packed to more
    than 95 percent."""
    sources = [
        {"path": shared("instruct"), "format": "alpaca", "share": 0.5},
        {"path": shared("qa/*.en.json"), "format": "auto", "share": 0.3},
        {"path": shared("pretrain/the-verdict.txt"), "format": "text", "share": 0.2},
    ]
    said = json.loads(audit(sources, "--json", pack_length_tokens=4096).stdout)
    assert [source["format"] for source in said["sources"]] == ["alpaca", "question_answer", "text"]
    assert [line.rpartition(" times per epoch, ")[2] for line in said["mixture"]] == [
        "50.0% of its tokens", "30.0% of its tokens", "20.0% of its tokens",
    ]  # fmt: skip
    assert said["epoch"]["slots_used"] > 0.95
    assert said["epoch"]["rows"] < said["epoch"]["documents"]


def test_an_archive_is_refused(tmp_path: Path, audit: Callable[..., Result]) -> None:
    """A zip is refused by its name with the endings that can be read, and, named .jsonl, by its content; both
    end with 2."""
    content = Path(shared("sentiment/sentence_polarity.jsonl")).read_bytes()
    for name, message in (
        (
            "sentence_polarity.zip",
            "ends in '.zip', expected .json, .jsonl, .csv, .tsv, .parquet, .arrow, .txt",
        ),
        (
            "renamed.jsonl",
            "renamed.jsonl is not text: its content is a ZIP archive or a spreadsheet; rename or unpack it",
        ),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("sentence_polarity.jsonl", content)
        assert message in audit([{"path": name, "format": "classification"}], code=2).stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("code/mbpp.jsonl", {"format": "alpaca"}, ":1, read as format 'alpaca': no column 'instruction'; the row has 'text'"),
        ("math/gsm8k_test.jsonl", {"format": "messages"}, ":1, read as format 'messages': no column 'messages'; the row has"),
        ("chat/lf_v1_sft_demo.jsonl", {"format": "sharegpt"}, "no column 'conversations'; the row has 'messages'"),
        ("sentiment/sentence_polarity.jsonl", {"format": "auto"}, "classification (text, label) fit the columns"),
        ("translation/xquad_en-es.jsonl", {"format": "auto"}, "no format fits the columns 'kind', 'en', 'es'"),
        ("sentiment/sentence_polarity.jsonl", {"format": "classification", "labels": {"0": "bad"}},
         "label is 'positive', which labels doesn't name; it names '0'"),
        ("qa/xquad.en.json", {"format": "alpaca", "columns": {"instruction": "questions"}},
         "no column 'questions', which columns.instruction names; the row has 'paragraphs', 'title'"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_for_real_data(
    name: str, options: dict[str, Any], message: str, audit: Callable[..., Result]
) -> None:
    """A format, column or label that a real file doesn't have ends with 2, the first row's place and what it
    has."""
    said = audit([{"path": shared(name)} | options], code=2).stderr
    assert said.startswith(f"error: {Path(name).name}")
    assert message in said
    assert "Traceback" not in said
