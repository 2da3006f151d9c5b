"""finetune data: what an audit finds, what fails it, and what the recipe allows."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.audit.report import FINDINGS
from tests.support.cli import FinetuneHere
from tests.support.models import CHATML
from tests.unit.cli.audits import Recipes, chat


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
        [chat("q", "a"), chat("q", "b", weight=0)], "rows.jsonl:2", "it has no supervised tokens", {}
    ),
    "unsupervised_end_of_turn": Found(
        [chat("q", "a")], "rows.jsonl:1", "(llama3) writes it ends in 'a<|eot_id|>', which is not a special token of",
        {"chat_template": "llama3"},
    ),
    "leakage": Found(
        [chat("q", "a"), chat("Other ", "ANSWER")], "rows.jsonl:2", "it is also in the evaluation rows", {}, evaluation=True
    ),
    "double_bos": Found(
        [chat("q", "a")], "rows.jsonl:1", "it begins with two <|im_start|>; remove one of them",
        {"chat_template": "./double.jinja"},
    ),
    "prompt_not_learned": Found(
        [chat("q", "a")], "rows.jsonl:1", "writes different text before an answer when it asks for one",
        {"chat_template": "./thinks.jinja"},
    ),
    "left_out_text": Found(
        [chat("q", "a")], "rows.jsonl:1", "leaves out the text of message 0 (user), or part of it",
        {"chat_template": "./deaf.jinja"},
    ),
    "unknown_token": Found(
        [chat("q", "café")], "rows.jsonl:1", "the tokenizer drops characters that are not in its vocabulary",
        {"base": "./lossy"},
    ),
}  # fmt: skip


def with_findings(recipe: Recipes, *names: str) -> str:
    """A recipe that these findings are made in."""
    (recipe.folder / "double.jinja").write_text("{{ bos_token }}" + CHATML)
    thinks = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    (recipe.folder / "thinks.jinja").write_text(thinks)
    only_answers = "{{ message['content'] if message['role'] == 'assistant' else '' }}"
    (recipe.folder / "deaf.jinja").write_text(CHATML.replace("{{ message['content'] }}", only_answers))
    if "unknown_token" in names:
        without_a_byte(recipe.base, recipe.folder / "lossy")
    cases = [CASES[name] for name in names]
    rows = [row for case in cases for row in case.rows]
    held_out = {"path": recipe.rows("held_out.jsonl", [chat("other", "answer")]), "format": "messages"}
    sections = {"evaluation": {"sources": [held_out]}} if any(case.evaluation for case in cases) else {}
    model = {key: value for case in cases for key, value in case.model.items()}
    return recipe({"path": recipe.rows("rows.jsonl", rows), "format": "messages"}, model=model, **sections)


def without_a_byte(base: Path, folder: Path) -> None:
    """A base whose tokenizer has no token for the byte that é begins with."""
    shutil.copytree(base, folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    del values["model"]["vocab"]["Ã"]
    (folder / "tokenizer.json").write_text(json.dumps(values))


def test_every_finding_has_its_case() -> None:
    """The table of findings and the cases of this file name the same ones."""
    assert set(CASES) == set(FINDINGS)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_fails_the_audit(finding: str, data: FinetuneHere, recipe: Recipes) -> None:
    """The audit ends with 3 and says which finding, in how many rows, and where; --json says the same in one
    document."""
    name, case = with_findings(recipe, finding), CASES[finding]
    printed = data(name, code=3)
    index = printed.lines.index(f"{finding}: 1 {FINDINGS[finding]} (fails the audit)")
    assert printed.lines[index + 1].startswith(f"  {case.place}: ")
    assert case.says in printed.lines[index + 1]
    assert "the audit holds" not in printed.stdout
    assert printed.stderr.startswith(f"error: the audit fails: {finding}. ")
    as_json = data(name, "--json", code=3)
    audit = as_json.json
    assert (audit["ok"], audit["failed"], audit["findings"]) == (False, [finding], {finding: 1})
    assert sum(finding in source["findings"] for source in audit["sources"]) == 1
    assert "error" not in as_json.stderr


@pytest.mark.parametrize("finding", FINDINGS)
def test_an_allowed_finding_fails_nothing(finding: str, data: FinetuneHere, recipe: Recipes) -> None:
    """What the message of a failed audit advises to write makes the audit hold; the finding is still
    reported."""
    name = with_findings(recipe, finding)
    (advised,) = re.findall(r"with (data\.allow_findings: \[.*?\])", data(name, code=3).stderr)
    printed = data(name, advised.replace(": ", "=", 1))
    assert printed.lines[-1] == "the audit holds"
    assert f"{finding}: 1 {FINDINGS[finding]} (allowed by data.allow_findings)" in printed.lines
    audit = data(name, f"data.allow_findings=[{finding}]", "--json").json
    assert (audit["ok"], audit["failed"], audit["findings"]) == (True, [], {finding: 1})


def test_every_finding_at_once(data: FinetuneHere, recipe: Recipes) -> None:
    """All findings of an audit are named, and one that is left when the others are allowed still fails it."""
    name = with_findings(recipe, "no_supervised_token", "leakage", "double_bos")
    assert set(data(name, "--json", code=3).json["failed"]) == {
        "no_supervised_token",
        "leakage",
        "double_bos",
    }
    audit = data(name, "data.allow_findings=[leakage, double_bos]", "--json", code=3).json
    assert audit["failed"] == ["no_supervised_token"]
    assert set(audit["findings"]) == {"no_supervised_token", "leakage", "double_bos"}


def test_leakage_can_be_dropped_or_kept(data: FinetuneHere, recipe: Recipes) -> None:
    """With data.clean.leakage drop the row is dropped with its reason; with keep nothing is said; both audits
    hold."""
    name = with_findings(recipe, "leakage")
    dropped = data(name, "data.clean.leakage=drop")
    assert "  dropped 1 that are also in the evaluation rows:" in dropped.lines
    assert data(name, "data.clean.leakage=keep", "--json").json["findings"] == {}
