"""BLEU and chrF by sacrebleu, over all answers together."""

from collections.abc import Sequence
from typing import Any

from data_prep.text import one_line
from finetune.errors import FinetuneError
from finetune.recipe.schema.evaluate import BleuTokenizer, EvaluateSection
from finetune.scoring.measured import Measured, Prediction
from finetune.scoring.metrics.base import Metric, Scorer
from finetune.scoring.words import is_ideograph, is_unspaced


class Bleu:
    """BLEU (Papineni et al. 2002) by sacrebleu, each row tokenised for the script of its own references.

    "auto" is 13a, WMT's; zh for references with Chinese characters; char for those mostly in another script
    without blanks between words. Where every answer has four tokens or more, the figure is sacrebleu's own;
    shorter texts count by the n-grams that they are long enough for, so that equal ones have 100.
    """

    def __init__(self, answers: Sequence[Prediction], tokenizer: BleuTokenizer):
        """Raises FinetuneError where the tokenizer is not installed."""
        self.answers = answers
        names = [
            bleu_tokenizer(answer.question.expected) if tokenizer == "auto" else tokenizer
            for answer in answers
        ]
        self._metrics = {name: sacrebleu_metric(name) for name in dict.fromkeys(names)}
        self._by_row = [self._metrics[name] for name in names]

    def corpus(self) -> Scorer:
        """Of all answers together: the counts of all rows add up, whatever tokenised them."""
        counts = [_counts(metric, answer) for metric, answer in zip(self._by_row, self.answers, strict=True)]
        return _scorer(self._by_row[0], counts)

    def sentences(self) -> list[float]:
        """Of each answer alone."""
        return [_sentence(metric, answer) for metric, answer in zip(self._by_row, self.answers, strict=True)]

    def signature(self) -> str:
        """sacrebleu's signature, with every tokenizer that was used."""
        signatures = [_signed(metric) for metric in self._metrics.values()]
        tokenizers = "+".join(sorted(signature["tok"] for signature in signatures))
        return _joined(signatures[0] | {"tok": tokenizers})


def bleu_tokenizer(references: Sequence[str]) -> BleuTokenizer:
    """The tokenizer of sacrebleu that fits the script of a row's references."""
    letters = [character for text in references for character in text if character.isalpha()]
    unspaced = [character for character in letters if is_unspaced(character)]
    ideographs = sum(map(is_ideograph, unspaced))
    if len(unspaced) > ideographs and 2 * len(unspaced) > len(letters):
        return "char"
    return "zh" if ideographs else "13a"


def sacrebleu_metric(tokenizer: BleuTokenizer) -> Any:
    """BLEU with one of sacrebleu's tokenizers. Raises FinetuneError where that one is not installed."""
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(tokenize=tokenizer, effective_order=True)
    except (ImportError, RuntimeError, OSError, SystemExit) as error:
        extra = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}.get(tokenizer, "sentencepiece")
        raise FinetuneError(
            f"evaluate.bleu_tokenizer {tokenizer} is not there ({one_line(str(error))}): it needs pip "
            "install "
            f'"{extra}"{" and its model, which sacrebleu downloads" if tokenizer == "flores200" else ""}; or '
            "take auto."
        ) from error


def chrf(answers: Sequence[Prediction]) -> Scorer:
    """chrF of the whole (Popović 2015), by sacrebleu."""
    metric = _chrf()
    return _scorer(metric, [_counts(metric, answer) for answer in answers])


def sentence_chrf(answers: Sequence[Prediction]) -> list[float]:
    """chrF of each answer alone, by sacrebleu."""
    metric = _chrf()
    return [_sentence(metric, answer) for answer in answers]


def chrf_signature() -> str:
    """sacrebleu's signature."""
    return _joined(_signed(_chrf()))


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _signed(metric: Any) -> dict[str, str]:
    metric.corpus_score(["a"], [["a"]])  # a metric that has measured nothing has no signature
    info = metric.get_signature().info
    return {name: str(value) for name, value in info.items() if value is not None and name != "nrefs"}


def _joined(signature: dict[str, str]) -> str:
    """As sacrebleu writes it, its version last."""
    version = signature["version"]
    return "|".join(
        [*(f"{name}:{value}" for name, value in signature.items() if name != "version"), f"version:{version}"]
    )


def _sentence(metric: Any, answer: Prediction) -> float:
    return float(metric.sentence_score(answer.said, list(answer.question.expected)).score)


def _counts(metric: Any, answer: Prediction) -> list[float]:
    """What a metric of sacrebleu counts in a row; the counts of several add up to those of all, as in its own
    bootstrap.

    This method and _compute_score_from_stats are those that sacrebleu's base class asks of each metric; a
    test holds them to corpus_score.
    """
    references = [[reference] for reference in answer.question.expected]
    counts: list[float] = metric._extract_corpus_statistics([answer.said], references)[0]
    return counts


def _scorer(metric: Any, counts: Sequence[Sequence[float]]) -> Scorer:
    import numpy as np

    array = np.array(counts, dtype=np.float64)
    return lambda weights: float(metric._compute_score_from_stats((weights @ array).tolist()).score)


def _bleu(measured: Measured) -> Bleu:
    return Bleu(measured.answers, measured.bleu_tokenizer)


def _check_tokenizer(section: EvaluateSection) -> None:
    if section.bleu_tokenizer != "auto":
        sacrebleu_metric(section.bleu_tokenizer)


BLEU = Metric(
    "bleu",
    "answers",
    lambda measured: measured.once(_bleu).corpus(),
    "generated answers together, with all references",
    scale="0 to 100",
    by="Papineni et al. 2002, by sacrebleu, whose signature is printed",
    by_row=lambda measured: measured.once(_bleu).sentences(),
    signature=lambda measured: measured.once(_bleu).signature(),
    best=100.0,
    module="sacrebleu",
    keys=("bleu_tokenizer",),
    check=_check_tokenizer,
)
CHRF = Metric(
    "chrf",
    "answers",
    lambda measured: chrf(measured.answers),
    "generated answers together, with all references",
    scale="0 to 100",
    by="Popović 2015, by sacrebleu, whose signature is printed",
    by_row=lambda measured: sentence_chrf(measured.answers),
    signature=lambda _: chrf_signature(),
    best=100.0,
    module="sacrebleu",
)
