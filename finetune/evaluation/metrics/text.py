"""How near generated texts come to their references, by the libraries that the field compares with.

A metric of the whole looks at all answers once and gives a Scorer: the metric for any weighting of them
(finetune.evaluation.bootstrap). The others are means of a value for each answer.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_prep.text import one_line
from finetune.errors import FinetuneError
from finetune.evaluation.bootstrap import Scorer
from finetune.evaluation.metrics.words import apart, composed, is_ideograph, is_unspaced, words
from finetune.evaluation.predictions import Prediction
from finetune.recipe.schema.evaluate import BleuTokenizer


def mean_of(values: Sequence[float]) -> Scorer:
    """The mean of a value for each row."""
    array = np.asarray(values, dtype=np.float64)
    return lambda weights: float(weights @ array / weights.sum())


def best_over_references(score: Callable[[str, str], float], answers: Sequence[Prediction]) -> list[float]:
    """The score of each answer with the reference that it fits best."""
    return [max(score(answer.said, other) for other in answer.question.expected) for answer in answers]


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal, blanks around both aside."""
    return float(answer.strip() == reference.strip())


def squad_normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (Rajpurkar et al. 2016, arXiv:1606.05250).

    Punctuation is that of all scripts, as in MLQA (Lewis et al. 2020, arXiv:1910.07475).
    """
    bare = "".join(character for character in composed(text).lower() if not _is_punctuation(character))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


def squad_exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal as SQuAD reads them."""
    return float(squad_normalised(answer) == squad_normalised(reference))


def squad_f1(answer: str, reference: str) -> float:
    """The F1 of the words that the two share, as SQuAD reads them; of two that have none, 1 where both are empty.

    A letter counts as a word where its script has no blanks between words, as MLQA counts Chinese.
    """
    given, wanted = (apart(squad_normalised(text)).split() for text in (answer, reference))
    shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


class Bleu:
    """BLEU (Papineni et al. 2002) by sacrebleu, each row tokenised for the script of its own references.

    "auto" is 13a, WMT's; zh for references with Chinese characters; char for those mostly in another script without blanks
    between words. Where every answer has four tokens or more, the figure is sacrebleu's own; shorter texts count by the
    n-grams that they are long enough for, so that equal ones have 100.
    """

    def __init__(self, answers: Sequence[Prediction], tokenizer: BleuTokenizer):
        """Raises FinetuneError where the tokenizer is not installed."""
        self.answers = answers
        names = [bleu_tokenizer(answer.question.expected) if tokenizer == "auto" else tokenizer for answer in answers]
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
            f"evaluate.bleu_tokenizer {tokenizer} is not there ({one_line(str(error))}): it needs pip install "
            f'"{extra}"{" and its model, which sacrebleu downloads" if tokenizer == "flores200" else ""}; or take auto.'
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
    return "|".join([*(f"{name}:{value}" for name, value in signature.items() if name != "version"), f"version:{version}"])


def _sentence(metric: Any, answer: Prediction) -> float:
    return float(metric.sentence_score(answer.said, list(answer.question.expected)).score)


def _counts(metric: Any, answer: Prediction) -> list[float]:
    """What a metric of sacrebleu counts in a row; the counts of several add up to those of all, as in its own bootstrap.

    This method and _compute_score_from_stats are those that sacrebleu's base class asks of each metric; a test holds them to
    corpus_score.
    """
    references = [[reference] for reference in answer.question.expected]
    counts: list[float] = metric._extract_corpus_statistics([answer.said], references)[0]
    return counts


def _scorer(metric: Any, counts: Sequence[Sequence[float]]) -> Scorer:
    array = np.array(counts, dtype=np.float64)
    return lambda weights: float(metric._compute_score_from_stats((weights @ array).tolist()).score)


class _Words:
    """rouge-score's tokenizer for words of any script: those of ASCII letters are what its own gives."""

    def __init__(self) -> None:
        from nltk.stem import porter

        self._stemmer = porter.PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words in lower case; English ones of more than three letters stemmed, as rouge-score stems them."""
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words(text.lower())]


def rouge(name: str, answers: Sequence[Prediction]) -> list[float]:
    """The F1 of rouge1, rouge2 or rougeL (Lin 2004) with the best reference, stemmed, by Google's rouge-score.

    Its own tokenizer knows the letters a to z alone; words here are those of any script. Equal texts have 1, also those
    that are too short for a pair of words, or have none.
    """
    from rouge_score.rouge_scorer import RougeScorer

    measure = RougeScorer([name], tokenizer=_Words())

    def score(answer: str, reference: str) -> float:
        return exact_match(answer, reference) or float(measure.score(reference, answer)[name].fmeasure)

    return best_over_references(score, answers)
