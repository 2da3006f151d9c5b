"""finetune evaluate: a model's figures on a recipe's evaluation rows."""

from dataclasses import asdict

from finetune.cli.common import AllowCodeOption, JsonOption, OverridesArgument, RecipeArgument, allowed_code, out, print_json
from finetune.cli.generate import TargetArgument


def evaluate(
    target: TargetArgument,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model or a run.

    Loss, perplexity and exact match on a recipe's evaluation rows.
    """
    from finetune.errors import FinetuneError
    from finetune.recipe.load import load_recipe
    from finetune.runs.target import resolve_target

    loaded = load_recipe(recipe, overrides or []).recipe
    if loaded.data.evaluation is None:
        raise FinetuneError(f"{recipe} has no data.evaluation, so there is nothing to score on: add a fraction or sources.")
    found = resolve_target(target)

    from finetune.evaluate.loading import load_ready
    from finetune.evaluate.scores import score
    from finetune.model.precision import choose_precision

    precision = choose_precision(loaded.train.precision)
    model, tokenizer = load_ready(found.model, found.adapter, dtype=precision.dtype, quantize=found.quantized)
    scores = score(model, tokenizer, loaded, allow_code=allowed_code(allow_code))
    if as_json:
        finite = asdict(scores) | {"perplexity": scores.perplexity if scores.perplexity < float("inf") else None}
        print_json({"model": found.description, "precision": precision.name, **finite})
        return
    match = "no row has a prompt" if scores.exact_match is None else f"{scores.exact_match:.3f}"
    for name, value in (
        ("model", found.description),
        ("precision", f"{precision.name} ({precision.reason})"),
        ("rows", f"{scores.rows:,}, {scores.tokens:,} supervised tokens"),
        ("loss", f"{scores.loss:.4f}"),
        ("perplexity", f"{scores.perplexity:,.3f}"),
        ("exact match", match),
        ("seconds", f"{scores.loss_seconds:.1f} for the loss, {scores.generation_seconds:.1f} for the answers"),
    ):
        out(f"{name:<12} {value}")
