"""The whole way on a real model: score the base, train, merge, verify, score the merged model, and say what
it brought."""

import logging
import time
from pathlib import Path
from typing import Any

from data_prep.text import one_line
from finetune import signals
from finetune.errors import FinetuneError
from finetune.evaluation.evaluation import Evaluation
from finetune.evaluation.report import Report
from finetune.merging.merge import merge
from finetune.models.device import choose_precision
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.commands import shell_command
from finetune.runs.target import Target, resolve_target
from finetune.training import run

logger = logging.getLogger(__name__)

SAMPLES = 3


def walk(recipe: Recipe) -> dict[str, Any]:
    """Base, training, merge, merged model: the figures of each.

    Raises FinetuneError for a recipe that the walk doesn't fit, and what its steps raise.
    """
    if not recipe.data.evaluates or recipe.adapter.method == "full":
        raise FinetuneError(
            "the quickstart scores held-out rows and merges an adapter: keep data.evaluation, and "
            "adapter.method lora or qlora."
        )
    started = time.perf_counter()
    logger.info("scoring the base on held-out rows")
    before = held_out(recipe, recipe.model)
    logger.info(f"exact match of the base: {before.values['exact_match']:.3f}")
    trained = run.start(recipe, name="quickstart", command="finetune quickstart")
    folder, summary = trained.folder.path, trained.summary
    if summary["status"] == "stopped":
        raise signals.ending()
    merged = folder / "merged"
    logger.info("merging the adapter into full weights, and comparing the two")
    report = merge(resolve_target(str(folder)), merged)
    logger.info("scoring the merged model")
    after = held_out(recipe, ModelSection(base=str(merged)))
    pairs = list(zip(before.measured.answers, after.measured.answers, strict=True))
    return {
        "exact_match_before": before.values["exact_match"],
        "exact_match_after": after.values["exact_match"],
        "held_out_rows": len(pairs),
        "notes": [
            f"{when}: {note}"
            for when, found in (("before", before), ("after", after))
            for note in found.notes
        ],
        **{
            key: summary[key]
            for key in ("evaluation_loss_before", "evaluation_loss", "tokens", "tokens_per_second", "steps")
        },
        "precision": choose_precision(recipe.train.precision).name,
        "training_minutes": summary["seconds"] / 60,
        "total_minutes": (time.perf_counter() - started) / 60,
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "verification": report.verification.as_dict() if report.verification else None,
        "samples": [
            {
                "prompt": new.question.text,
                "expected": new.question.references[0],
                "before": old.text,
                "after": new.text,
            }
            for old, new in pairs[:SAMPLES]
        ],
        "run": str(folder),
        "adapter": str(folder / "adapter"),
        "merged": str(merged),
    }


def held_out(recipe: Recipe, model: ModelSection) -> Report:
    """The exact match of a model's answers to the recipe's evaluation rows."""
    section = recipe.evaluate.model_copy(update={"metrics": ("exact_match",)})
    scored = recipe.model_copy(update={"evaluate": section})
    evaluation = Evaluation(scored, choose_precision(recipe.train.precision))
    return evaluation.of(Target(model, None, None, model.name))


def table(result: dict[str, Any]) -> list[str]:
    """The result for a person: figures, samples, and where everything lies."""
    verification = result["verification"]
    lines = [
        f"{'':22} {'before':>10} {'after':>10}",
        f"{'exact match':22} {result['exact_match_before']:>10.3f} {result['exact_match_after']:>10.3f}"
        f"   on {result['held_out_rows']} held-out rows, by the merged model",
        f"{'loss':22} {result['evaluation_loss_before']:>10.4f} {result['evaluation_loss']:>10.4f}"
        "   per token of their answers",
        "",
        f"{'speed':22} {result['tokens_per_second']:>10,.0f} tokens/s in {result['precision']}, "
        f"{result['tokens']:,} tokens in {result['steps']} steps",
        f"{'peak memory':22} {result['peak_memory_bytes'] / 1e9:>10.2f} GB",
        f"{'time':22} {result['training_minutes']:>10.1f} minutes of training, {result['total_minutes']:.1f} "
        "in all",
        f"{'merge':22} {verification['verdict']}",
        *(f"{'note':22} {note}" for note in result["notes"]),
    ]
    for number, sample in enumerate(result["samples"], start=1):
        lines += ["", f"sample {number}"]
        lines += [
            f"  {name:9} {one_line(sample[name], 200)}" for name in ("prompt", "before", "after", "expected")
        ]
    lines += ["", *(f"{name:22} {result[name]}" for name in ("run", "adapter", "merged"))]
    lines += [f"{'try it':22} {shell_command('chat', Path(result['merged']))}"]
    return lines
