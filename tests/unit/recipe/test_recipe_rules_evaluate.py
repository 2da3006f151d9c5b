"""The rules of metrics and classification heads, and what engines can't do."""

import pytest
from ruamel.yaml import YAML

from finetune.engines.registry import ENGINES
from finetune.recipe.rules.evaluation import labels_of
from finetune.recipe.schema import Recipe
from tests.support.recipes import found

HELD = "data: {evaluation: {fraction: 0.1}}"
TRAIN = "train: {evaluate_every: 5}"
HEAD = "model: {head: {labels: [a, b]}}"
LABELLED = (
    "data: {evaluation: {fraction: 0.1}, train: [{path: x.jsonl, format: classification, labels: {'0': bad, "
    "'1': good}}]}"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("evaluate: {metrics: [loss]}", "evaluate.metrics  needs rows to evaluate on"),
        (
            "{evaluate: {metrics: [bleu, loss, bleu]}, " + HELD + "}",
            "evaluate.metrics.2  bleu is named twice",
        ),
        (
            "{evaluate: {metrics: [bleu, chrf, rougeL, squad_f1, exact_match, perplexity, bits_per_byte]}, "
            + HELD
            + "}",
            None,
        ),
        ("{evaluate: {metrics: [accuracy]}, " + HELD + "}", "evaluate.metrics.0  accuracy needs the labels"),
        ("{evaluate: {metrics: [accuracy], labels: [a, b]}, " + HELD + "}", None),
        ("{evaluate: {metrics: [accuracy]}, " + LABELLED + "}", None),
        (
            "{evaluate: {metrics: [loss], labels: [a, b]}, " + HELD + "}",
            "evaluate.labels  no metric of evaluate.metrics is about",
        ),
        (
            "{evaluate: {metrics: [accuracy], labels: [a, A ]}, " + HELD + "}",
            "evaluate.labels.1  'A' is named twice",
        ),
        ("{evaluate: {metrics: [accuracy], labels: [very, very good]}, " + HELD + "}", None),
        (
            "{evaluate: {metrics: [likelihood_accuracy], labels: [a]}, " + HELD + "}",
            "evaluate.metrics.0  compares likelihoods of labels",
        ),
        ("{evaluate: {metrics: [pearson]}, " + HELD + "}", "evaluate.metrics.0  pearson needs numbers"),
        ('{evaluate: {metrics: ["pass@1"], seconds_per_program: 2}, ' + HELD + "}", None),
        (
            '{evaluate: {metrics: ["pass@5"]}, ' + HELD + "}",
            "evaluate.metrics.0  pass@5 needs at least 5 answers a prompt",
        ),
        ('{evaluate: {metrics: ["pass@5"], samples_per_prompt: 5, temperature: 0.5}, ' + HELD + "}", None),
        (
            "{evaluate: {metrics: [bleu], samples_per_prompt: 5}, " + HELD + "}",
            "evaluate.samples_per_prompt  only pass@k",
        ),
        (
            "evaluate: {temperature: 0.5}",
            "evaluate.temperature  with one answer per prompt decoding is greedy",
        ),
        ("evaluate: {seconds_per_program: 2}", "evaluate.seconds_per_program  no metric runs programs"),
        ("evaluate: {temperature: 0.8}", "evaluate.temperature  with one answer per prompt"),
        ("evaluate: {seconds_per_program: 5.0}", "evaluate.seconds_per_program  no metric runs programs"),
        (
            "{evaluate: {rows_in_training: 5}, " + HELD + ", " + TRAIN + "}",
            "evaluate.rows_in_training  there are no evaluate.metrics",
        ),
        (
            "{evaluate: {rows_in_training: 5, metrics: [bleu]}, " + HELD + "}",
            "evaluate.rows_in_training  needs train.evaluate_every",
        ),
        ("{train: {best_by: loss}, " + HELD + "}", "train.best_by  needs train.evaluate_every"),
        ("{train: {best_by: loss, evaluate_every: 5}, " + HELD + "}", None),
        (
            "{train: {best_by: bleu, evaluate_every: 5}, " + HELD + "}",
            "train.best_by  bleu is not measured",
        ),
        (
            "{train: {best_by: bleu, evaluate_every: 5}, evaluate: {metrics: [bleu]}, " + HELD + "}",
            "train.best_by  bleu is measured at the end only",
        ),
        (
            "{train: {best_by: bleu, evaluate_every: 5, early_stopping: {}}, "
            "evaluate: {metrics: [bleu], rows_in_training: 9}, " + HELD + "}",
            None,
        ),
        ("{" + HEAD + ", evaluate: {metrics: [loss, accuracy, f1_macro, matthews]}, " + HELD + "}", None),
        (
            "{" + HEAD + ", evaluate: {metrics: [bleu]}, " + HELD + "}",
            "evaluate.metrics.0  bleu doesn't fit a head of problem single",
        ),
        (
            "{" + HEAD + ", evaluate: {metrics: [accuracy], labels: [a, b]}, " + HELD + "}",
            "evaluate.labels  the labels of model.head",
        ),
        (
            "{model: {head: {problem: multi_label, labels: [a]}}, evaluate: {metrics: [matthews]}, "
            + HELD
            + "}",
            "evaluate.metrics.0  matthews doesn't fit a head of problem multi_label",
        ),
        (
            "{model: {head: {problem: regression}}, evaluate: {metrics: [pearson, mean_squared_error]}, "
            + HELD
            + "}",
            None,
        ),
        (
            "{model: {head: {problem: regression}}, train: {label_smoothing: 0.1}}",
            "train.label_smoothing  only a head of problem",
        ),
        ("{" + HEAD + ", train: {label_smoothing: 0.1}}", None),
        (
            "{" + HEAD + ", tracking: {samples: {prompts: [x]}}}",
            "tracking.samples  a model with model.head writes no text",
        ),
        (
            "{" + HEAD + ", data: {supervise: last}}",
            "data.supervise  with model.head the answer is what is learned",
        ),
        (
            "{" + HEAD + ", data: {reasoning: drop}}",
            "data.reasoning  with model.head the answer is what is learned",
        ),
        ("{" + HEAD + ", data: {supervise: assistant}}", None),
        (
            "{" + HEAD + ", data: {attention: leaky, pack_length_tokens: 4096}}",
            "data.attention  with model.head each document has an answer of its own",
        ),
        (
            "{" + HEAD + ", data: {loss_weights: {a: 2}}}",
            "data.loss_weights  with model.head the answer is one number or label",
        ),
        (
            "{" + HEAD + ", data: {pack_split: true, pack_length_tokens: 4096}}",
            "data.pack_split  a document that is cut",
        ),
        (
            "{" + HEAD + ", evaluate: {max_new_tokens: 3}}",
            "evaluate.max_new_tokens  a model with model.head writes no text",
        ),
    ],
)
def test_a_rule(text: str, problem: str | None) -> None:
    """The one problem that a recipe has, or none."""
    said = found(text)
    assert len(said) == (problem is not None), said
    assert problem is None or said[0].startswith(problem), said


def test_labels_come_from_the_nearest_place() -> None:
    """The head's, else those of the evaluate section, else those that the sources name."""
    values = YAML(typ="safe", pure=True).load("{" + LABELLED + ", model: {base: owner/name}}")
    assert labels_of(Recipe.model_validate(values)) == ("bad", "good")
    assert labels_of(
        Recipe.model_validate(values | {"evaluate": {"metrics": ["accuracy"], "labels": ["x"]}})
    ) == ("x",)
    head = {"base": "owner/name", "head": {"labels": ["p", "q"]}}
    assert labels_of(Recipe.model_validate(values | {"model": head})) == ("p", "q")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("model: {new_tokens: [x]}", {"zero3", "zero3_offload"}),
        ("train: {optimizer: lion}", {"fsdp2", "zero2_offload", "zero3_offload"}),
        (
            "train: {sequence_parallel_size: 2}",
            {"single", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"},
        ),
        (
            "train: {weights_dtype: bf16}",
            {"fsdp2", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"},
        ),
        ("tracking: {samples: {prompts: [x]}}", set()),
        ("{evaluate: {metrics: [bleu]}, " + HELD + "}", set()),
        (HEAD, set()),
    ],
)
def test_engines_refuse_what_they_cannot_do(text: str, refused: set[str]) -> None:
    """With the reason and the way out; the others take it."""
    values = YAML(typ="safe", pure=True).load(text)
    values.setdefault("model", {})["base"] = "owner/name"
    values.setdefault("data", {})["train"] = [{"generated": "orders"}]
    recipe = Recipe.model_validate(values)
    said = {engine.name: problem for engine in ENGINES if (problem := engine.problem(recipe)) is not None}
    assert set(said) == refused
    assert all("Take " in problem for problem in said.values())
