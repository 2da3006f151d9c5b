"""An answer is compared with what the learned tokens read back as, whatever a tokenizer does to a text."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import data_prep
from data_prep.messages import Conversation, Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.data import prepare_data, tokenizer_for
from finetune.evaluation.evaluation import Evaluation
from finetune.evaluation.predictions import questions_of
from finetune.evaluation.report import Report, by_row
from finetune.evaluation.report_tables import predictions
from finetune.models.device import choose_precision
from finetune.recipe.load import load_recipe
from finetune.runs.target import resolve_target
from finetune.scoring.labels import Labels
from finetune.scoring.measured import Measured, Prediction
from tests.support.models import learn
from tests.unit.evaluation.kinds import KINDS, save_kind

ROWS = {
    "The cat:": " <call> tom",
    "The dog:": " max  and  <call> lily",
    "The bird:": " [note] sings [note] all day",
    "A word:": " \uff26\uff55\uff4c\uff4c ﬁne Größe",
    "The sign:": " 猫, кот, 😀",
    "The end:": " two\n  lines ",
}
"""Plain texts whose answers hold new tokens, blanks, other scripts, characters that NFKC changes, line
breaks."""

TEMPLATES = Path(data_prep.__file__).parent / "chat" / "templates"

RECIPE = """
model: {{base: {base}}}
data:
  train: [{{path: {rows}, format: {format}}}]
  evaluation: {{sources: [{{path: {rows}, format: {format}}}]}}
  clean: {{leakage: keep}}
  allow_findings: [leakage]
evaluate: {{metrics: {metrics}, max_new_tokens: 60}}
train: {{precision: fp32}}
"""


def measured(
    folder: Path,
    rows: list[dict],
    format_name: str,
    metrics: str,
    texts: list[str],
    kind: str,
    template: str = "",
) -> Report:
    """A model that has learned the rows by heart as the toolkit prepares them, on those rows."""
    folder.mkdir(exist_ok=True)
    save_kind(kind, folder, texts)
    if template:
        shutil.copyfile(TEMPLATES / f"{template}.jinja", folder / "chat_template.jinja")
    vocabulary = max(
        json.loads((folder / "tokenizer.json").read_text())["added_tokens"], key=lambda token: token["id"]
    )["id"]
    torch.manual_seed(0)
    size = {
        "vocab_size": max(vocabulary + 1, 400),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**size, **ends, num_attention_heads=4, max_position_embeddings=128)
    LlamaForCausalLM(config).save_pretrained(folder)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_path = folder / "recipe.yaml"
    recipe_path.write_text(RECIPE.format(base=folder, rows=path, format=format_name, metrics=metrics))
    recipe = load_recipe(str(recipe_path), []).recipe
    target = resolve_target(str(folder))
    evaluation = Evaluation(recipe, choose_precision("fp32"))
    documents = prepare_data(recipe, tokenizer_for(recipe.model, None, folder)).evaluation
    learn(folder, [(row.token_ids[: row.spans[0][0]], row.token_ids[row.spans[0][0] :]) for row in documents])
    return evaluation.of(target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_memorised_model_is_right(tmp_path: Path, kind: str) -> None:
    """Every answer of a model that knows its rows by heart is right, by each metric of texts."""
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ROWS.items()]
    texts = [prompt + answer for prompt, answer in ROWS.items()]
    names = "[exact_match, squad_exact_match, squad_f1, bleu, chrf, rouge1, rouge2, rougeL, loss]"
    report = measured(tmp_path, rows, "prompt_completion", names, texts, kind)
    assert report.values.pop("loss") < 0.05
    values = {
        name: value / (100 if name in ("bleu", "chrf") else 1)
        for name, value in report.values.items()
        if name != "loss"
    }
    assert values == pytest.approx(dict.fromkeys(values, 1.0))
    kept = {entry["asked"]: entry for entry in predictions(report)}
    assert [entry["references"] for entry in kept.values()] == [[answer] for answer in ROWS.values()]
    changed = [entry for entry in kept.values() if "read_back" in entry]
    assert any(
        note.startswith(f"{len(changed)} of 6 references are compared") for note in report.notes
    ) is bool(changed)
    if kind == "normalising":
        assert kept["A word:"]["read_back"][0].strip() == "full fine größe"
    if kind in ("byte_level", "sentencepiece"):
        assert "read_back" not in kept["The sign:"]


@pytest.mark.parametrize(
    "kind", ["byte_level", pytest.param("normalising", marks=pytest.mark.long), "sentencepiece"]
)
def test_labels_are_named_as_they_read_back(tmp_path: Path, kind: str) -> None:
    """A label with a new token, or with letters that the tokenizer changes, is found in the answer that was
    learned."""
    labels = ["<call> Yes", "ﬁne", "Größe"]
    rows = [{"q": f"row {index}", "a": labels[index % 3]} for index in range(3)]
    (tmp_path / "base").mkdir()
    folder = tmp_path / "base"
    source = 'template, template: {prompt: "{{ q }}:", completion: " {{ a }}", chat: false}'
    metrics = (
        "[accuracy, f1_macro, exact_match, likelihood_accuracy], labels: "
        f"{json.dumps(labels, ensure_ascii=False)}"
    )
    report = measured(folder, rows, source, metrics, [f"{row['q']}: {row['a']}" for row in rows], kind)
    assert report.values == pytest.approx(dict.fromkeys(report.values, 1.0))
    assert not any("begin with none of the labels" in note for note in report.notes)


def test_a_memorised_chat_is_right(tmp_path: Path) -> None:
    """Also behind a template that writes a blank before each answer, on a tokenizer that puts one before each
    text."""
    rows = [
        {"instruction": question, "input": "", "output": answer.strip()} for question, answer in ROWS.items()
    ]
    texts = [f"[INST] {prompt} [/INST]{answer}" for prompt, answer in ROWS.items()]
    report = measured(tmp_path, rows, "alpaca", "[exact_match, chrf]", texts, "sentencepiece", "llama2")
    assert report.values == pytest.approx({"exact_match": 1.0, "chrf": 100.0})


def test_what_is_thought_is_no_answer(tiny_base: Path) -> None:
    """An answer is compared without the thought before it, whatever that is; one that was cut in its thought
    is none."""
    thought = Message("assistant", "Four.", reasoning="Two and two.")
    example = Conversation((Message("user", "2 + 2?"), thought))
    (question,) = questions_of([("row 1", example)], load_tokenizer(tiny_base))
    assert question.expected == ("Four.",)
    said = ["<think>\nTwo and two.\n</think>\n\nFour.", "Let me see.</think>Four.", "Four.", "<think>Four."]
    assert by_row("exact_match", Measured(answers=[Prediction(question, (text,)) for text in said])) == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]
    labels = Labels(("four.", "five."))
    assert labels.said(Prediction(question, (said[0],)).said) == ["four."]
