"""ROUGE by Google's rouge-score, for words of any script."""

from collections.abc import Sequence

from finetune.scoring.measured import Measured, Prediction
from finetune.scoring.metrics.base import Metric, best_over_references, mean_over
from finetune.scoring.metrics.matches import exact_match
from finetune.scoring.words import words


class _Words:
    """rouge-score's tokenizer for words of any script: those of ASCII letters are what its own gives."""

    def __init__(self) -> None:
        from nltk.stem import porter

        self._stemmer = porter.PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words in lower case; English ones of more than three letters stemmed, as rouge-score stems
        them."""
        return [
            self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word
            for word in words(text.lower())
        ]


def rouge(name: str, answers: Sequence[Prediction]) -> list[float]:
    """The F1 of rouge1, rouge2 or rougeL (Lin 2004) with the best reference, stemmed, by Google's
    rouge-score.

    Its own tokenizer knows the letters a to z alone; words here are those of any script. Equal texts have 1,
    also those that are too short for a pair of words, or have none.
    """
    from rouge_score.rouge_scorer import RougeScorer

    measure = RougeScorer([name], tokenizer=_Words())

    def score(answer: str, reference: str) -> float:
        return exact_match(answer, reference) or float(measure.score(reference, answer)[name].fmeasure)

    return best_over_references(score, answers)


def _rouge(name: str) -> Metric:
    def values(measured: Measured) -> list[float]:
        return rouge(name, measured.answers)

    return Metric(
        name,
        "answers",
        mean_over(values),
        "generated answers, the best of a question's references",
        by="Lin 2004, by rouge-score: stemmed, with words of any script",
        by_row=values,
        module="rouge_score",
    )


ROUGE1, ROUGE2, ROUGE_L = _rouge("rouge1"), _rouge("rouge2"), _rouge("rougeL")
