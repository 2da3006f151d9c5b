"""One recipe's evaluation rows, and one model after the other on them."""

from collections.abc import Collection

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.data import prepare_data
from finetune.errors import FinetuneError
from finetune.evaluation.dataset import read_rows
from finetune.evaluation.predictions import OnProgress
from finetune.evaluation.report import Report, measure
from finetune.generation.loading import ModelTarget, load_ready
from finetune.models.device import Precision
from finetune.recipe.rules.packages import check_metric_packages
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection


class Evaluation:
    """The recipe's metrics of models, each loaded in its turn and let go.

    Raises FinetuneError at once where a package that computes one of the metrics is not installed.
    """

    def __init__(
        self,
        recipe: Recipe,
        precision: Precision,
        *,
        allow_code: Collection[str] = (),
        progress: OnProgress | None = None,
    ):
        check_metric_packages(recipe.evaluate.metrics)
        self.recipe, self.precision, self.allow_code, self.progress = recipe, precision, allow_code, progress

    def of(self, target: ModelTarget) -> Report:
        """The metrics of a model that is loaded for it. Raises what of_loaded raises, before it is loaded
        where that can be."""
        self._check_head(target)
        return self.of_loaded(target, *load_ready(target, dtype=self.precision.dtype))

    def of_loaded(
        self, target: ModelTarget, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> Report:
        """The metrics of a model. Raises FinetuneError where it, the recipe and its rows don't fit
        together."""
        self._check_head(target)
        data = prepare_data(self.recipe, tokenizer, allow_code=self.allow_code)
        positions = int(model.config.max_position_embeddings)
        rows = read_rows(
            self.recipe, data, tokenizer, positions=positions, most=self.recipe.evaluate.max_rows
        )
        return measure(model, tokenizer, self.recipe, rows, progress=self.progress)

    def _check_head(self, target: ModelTarget) -> None:
        if target.model.head != self.recipe.model.head:
            raise FinetuneError(
                f"{target.description} has {_head(target.model)}, and the recipe {_head(self.recipe.model)}: "
                "evaluate it with the recipe that it was trained with, or with the same model.head."
            )


def _head(model: ModelSection) -> str:
    if not (head := model.head):
        return "no classification head"
    labels = f" with the labels {', '.join(head.labels)}" if head.labels else ""
    return f"a head of problem {head.problem}{labels}"
