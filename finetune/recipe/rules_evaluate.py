"""Rules for metrics and classification heads: what they need of the rest of the recipe."""

from data_prep.config import RowsSource
from finetune.recipe.given import Given, RuleProblem, asked
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.evaluate import BY_LIKELIHOOD, OF_LABELS, OF_NUMBERS, PASS_AT, MetricName

LOSS: frozenset[MetricName] = frozenset({"loss"})
OF_HEADS: dict[str, frozenset[MetricName]] = {
    "single_label": frozenset({"loss", "accuracy", "f1_macro", "f1_micro", "matthews"}),
    "multi_label": frozenset({"loss", "accuracy", "f1_macro", "f1_micro"}),
    "regression": LOSS | OF_NUMBERS,
}
"""What can be measured of a head, by its problem."""


def labels_of(recipe: Recipe) -> tuple[str, ...]:
    """What label metrics tell apart: the head's labels, else evaluate.labels, else those that the sources' `labels` name."""
    if recipe.model.head is not None:
        return recipe.model.head.labels
    if recipe.evaluate.labels:
        return recipe.evaluate.labels
    sources = [source for source in recipe.data.sources if isinstance(source, RowsSource)]
    return tuple(dict.fromkeys(label for source in sources for label in source.labels.values()))


def metrics_fit(recipe: Recipe, given: Given) -> RuleProblem:
    """Each metric has what it needs: labels, a head, samples."""
    section, head = recipe.evaluate, recipe.model.head
    labels = labels_of(recipe)
    for index, name in enumerate(section.metrics):
        path = f"evaluate.metrics.{index}"
        if name in section.metrics[:index]:
            yield path, f"{name} is named twice"
        elif head is not None and name not in OF_HEADS[head.problem]:
            fitting = ", ".join(sorted(OF_HEADS[head.problem]))
            yield path, f"{name} doesn't fit a head of problem {head.problem}; such a head has {fitting}"
        elif head is None and name in OF_NUMBERS:
            yield path, f"{name} needs numbers, which model.head with problem regression gives; this recipe predicts text"
        elif name in OF_LABELS and not labels:
            yield path, f"{name} needs the labels: name them in evaluate.labels, or in the `labels` of format classification"
        elif section.samples_per_prompt < PASS_AT.get(name, 1):
            yield path, f"{name} needs at least {PASS_AT[name]} answers a prompt; set evaluate.samples_per_prompt"
    yield from _labels(recipe)


def _labels(recipe: Recipe) -> RuleProblem:
    labels = recipe.evaluate.labels
    if not labels:
        return
    if recipe.model.head is not None:
        yield "evaluate.labels", "the labels of model.head are what counts; remove these"
    elif not OF_LABELS & set(recipe.evaluate.metrics):
        yield (
            "evaluate.labels",
            "no metric of evaluate.metrics is about labels (accuracy, f1_macro ...); add one, or remove this",
        )
    folded = [label.strip().casefold() for label in labels]
    for index, label in enumerate(folded):
        if label in folded[:index]:
            yield f"evaluate.labels.{index}", f"{labels[index]!r} is named twice (case and blanks aside)"


def sampling_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """Options of answers that are drawn, or run, need metrics that look at them."""
    section = recipe.evaluate
    runs_code = bool(PASS_AT.keys() & set(section.metrics))
    if section.samples_per_prompt > 1 and not runs_code:
        yield (
            "evaluate.samples_per_prompt",
            "only pass@k looks at more than one answer; add it to evaluate.metrics, or remove this",
        )
    if asked(recipe, given, "evaluate.temperature") and section.samples_per_prompt == 1:
        yield (
            "evaluate.temperature",
            "with one answer per prompt decoding is greedy, so temperature has no effect; set samples_per_prompt, or remove",
        )
    if asked(recipe, given, "evaluate.bleu_tokenizer") and "bleu" not in section.metrics:
        yield "evaluate.bleu_tokenizer", "bleu is not measured: add it to evaluate.metrics, or remove this"
    if asked(recipe, given, "evaluate.seconds_per_program") and not runs_code:
        yield "evaluate.seconds_per_program", "no metric runs programs (pass@1 ...); add one, or remove this"
    if section.rows_in_training is not None and not section.metrics:
        yield "evaluate.rows_in_training", "there are no evaluate.metrics to measure; name some, or remove this"
    if section.rows_in_training is not None and recipe.train.evaluate_every_steps is None:
        yield "evaluate.rows_in_training", "needs train.evaluate_every_steps: metrics are measured with the evaluation loss"


def best_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """The metric that chooses the best checkpoint is measured while checkpoints are made."""
    best, section = recipe.train.best_by, recipe.evaluate
    if best is None:
        return
    if recipe.train.evaluate_every_steps is None:
        yield "train.best_by", "needs train.evaluate_every_steps: checkpoints are compared at evaluations"
    if best == "loss" or (best == "perplexity" and recipe.model.head is None):
        return
    if best not in section.metrics:
        yield "train.best_by", f"{best} is not measured: add it to evaluate.metrics"
    elif section.rows_in_training is None:
        yield "train.best_by", f"{best} is measured at the end only: set evaluate.rows_in_training"


def likelihood_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """Likelihoods compare single labels."""
    named = [index for index, name in enumerate(recipe.evaluate.metrics) if name in BY_LIKELIHOOD]
    if named and len(labels_of(recipe)) == 1:
        yield f"evaluate.metrics.{named[0]}", "compares likelihoods of labels, and there is only one label"


RULES = (metrics_fit, sampling_fits, best_fits, likelihood_fits)
