"""Generated programs, run with their rows' tests in a sandbox."""

import math

from finetune.errors import FinetuneError
from finetune.scoring.measured import Measured
from finetune.scoring.metrics.base import Metric, mean_over


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k samples is correct, estimated without bias from n samples of which c are
    correct.

    1 - C(n-c, k) / C(n, k): Chen et al. 2021, arXiv:2107.03374. Raises FinetuneError where there are fewer
    than k samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise FinetuneError(
            f"pass@{k} of {samples} samples, {correct} correct, is undefined: k goes from 1 to the samples."
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def _pass_at(k: int) -> Metric:
    def estimates(measured: Measured) -> list[float]:
        counts = [
            (len(verdicts), sum(verdict.passed for verdict in verdicts)) for verdicts in measured.programs
        ]
        return [pass_at_k(*count, k) for count in counts]

    return Metric(
        f"pass@{k}",
        "programs",
        mean_over(estimates),
        "generated programs, run with the row's tests",
        by="Chen et al. 2021, arXiv:2107.03374",
        by_row=estimates,
        samples=k,
    )


PASS_AT = (_pass_at(1), _pass_at(5), _pass_at(10))
