"""Rules for metrics and classification heads: what they need of the rest of the recipe."""

from data_prep.config import RowsSource
from finetune.objectives import kind_of
from finetune.recipe.given import Given, RuleProblem, asked
from finetune.recipe.reading.explain import not_among
from finetune.recipe.schema import Recipe
from finetune.scoring import metrics


def labels_of(recipe: Recipe) -> tuple[str, ...]:
    """What label metrics tell apart: the head's labels, else evaluate.labels, else those that the sources'
    `labels` name."""
    if recipe.model.head:
        return recipe.model.head.labels
    if recipe.evaluate.labels:
        return recipe.evaluate.labels
    sources = [source for source in recipe.data.sources if isinstance(source, RowsSource)]
    return tuple(dict.fromkeys(label for source in sources for label in source.labels.values()))


def metrics_fit(recipe: Recipe, given: Given) -> RuleProblem:
    """Each metric is known, and has what it needs: labels, a head, samples."""
    names = recipe.evaluate.metrics
    for index, name in enumerate(names):
        path = f"evaluate.metrics.{index}"
        if not metrics.known([name]):
            yield path, not_among(name, [metric.name for metric in metrics.METRICS])
        elif name in names[:index]:
            yield path, f"{name} is named twice"
        elif (why := _why_unfit(metrics.metric_of(name), recipe)) is not None:
            yield path, why
    yield from _labels(recipe)


def _why_unfit(metric: metrics.Metric, recipe: Recipe) -> str | None:
    """Why a metric can't be measured of the recipe's model; None where it can."""
    found, name = kind_of(recipe), metric.name
    if found is None:
        return None  # which is refused already
    outcome = found.outcome(recipe.model)
    if outcome != "text" and outcome not in metric.fits:
        fitting = ", ".join(sorted(other.name for other in metrics.METRICS if outcome in other.fits))
        if recipe.model.classifies:
            return f"{name} doesn't fit a head of problem {outcome}; such a head has {fitting}"
        return (
            f"{name} doesn't fit objective {found.kind}, which has "
            f"{fitting or 'none: its evaluation loss is logged'}"
        )
    if outcome not in metric.fits:
        what = "numbers" if metric.fits == ("regression",) else "a head's outputs"
        problems = " or ".join(metric.fits)
        return (
            f"{name} needs {what}, which model.head with problem {problems} gives; this recipe predicts text"
        )
    if "labels" in metric.needs and not labels_of(recipe):
        return (
            f"{name} needs the labels: name them in evaluate.labels, or in the `labels` of format "
            "classification"
        )
    if recipe.evaluate.samples_per_prompt < metric.samples:
        return f"{name} needs at least {metric.samples} answers a prompt; set evaluate.samples_per_prompt"
    return None


def _labels(recipe: Recipe) -> RuleProblem:
    labels = recipe.evaluate.labels
    if not labels:
        return
    if recipe.model.classifies:
        yield "evaluate.labels", "the labels of model.head are what counts; remove these"
    elif not any("labels" in metric.needs for metric in metrics.known(recipe.evaluate.metrics)):
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
    section, asked_for = recipe.evaluate, metrics.known(recipe.evaluate.metrics)
    runs_code = any(metric.of == "programs" for metric in asked_for)
    if section.samples_per_prompt > 1 and not runs_code:
        yield (
            "evaluate.samples_per_prompt",
            "only pass@k looks at more than one answer; add it to evaluate.metrics, or remove this",
        )
    if asked(recipe, given, "evaluate.temperature") and section.samples_per_prompt == 1:
        yield (
            "evaluate.temperature",
            "with one answer per prompt decoding is greedy, so temperature has no effect; set "
            "samples_per_prompt, or remove",
        )
    for key in sorted({key for metric in metrics.METRICS for key in metric.keys}):
        if asked(recipe, given, f"evaluate.{key}") and not any(key in metric.keys for metric in asked_for):
            readers = " or ".join(metric.name for metric in metrics.METRICS if key in metric.keys)
            yield f"evaluate.{key}", f"{readers} is not measured: add it to evaluate.metrics, or remove this"
    if asked(recipe, given, "evaluate.seconds_per_program") and not runs_code:
        yield "evaluate.seconds_per_program", "no metric runs programs (pass@1 ...); add one, or remove this"
    if section.rows_in_training is not None and not section.metrics:
        yield (
            "evaluate.rows_in_training",
            "there are no evaluate.metrics to measure; name some, or remove this",
        )
    if section.rows_in_training is not None and recipe.train.evaluate_every is None:
        yield (
            "evaluate.rows_in_training",
            "needs train.evaluate_every: metrics are measured with the evaluation loss",
        )


def best_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """The metric that chooses the best checkpoint is measured while checkpoints are made."""
    best, section = recipe.train.best_by, recipe.evaluate
    if best is None:
        return
    if not metrics.known([best]):
        yield "train.best_by", not_among(best, [metric.name for metric in metrics.METRICS])
        return
    if recipe.train.evaluate_every is None:
        yield "train.best_by", "needs train.evaluate_every: checkpoints are compared at evaluations"
    found = kind_of(recipe)
    if found is None or best == "loss" or (best == "perplexity" and found.has_perplexity):
        return
    if best in found.logged:
        return
    if best not in section.metrics:
        yield "train.best_by", f"{best} is not measured: add it to evaluate.metrics"
    elif section.rows_in_training is None:
        yield "train.best_by", f"{best} is measured at the end only: set evaluate.rows_in_training"


def likelihood_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """Likelihoods compare single labels."""
    by_likelihood = {metric.name for metric in metrics.METRICS if metric.of == "likelihoods"}
    named = [index for index, name in enumerate(recipe.evaluate.metrics) if name in by_likelihood]
    if named and len(labels_of(recipe)) == 1:
        yield f"evaluate.metrics.{named[0]}", "compares likelihoods of labels, and there is only one label"


RULES = (metrics_fit, sampling_fits, best_fits, likelihood_fits)
