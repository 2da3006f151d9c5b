"""How long answers and likelihoods take: many at a time, beside one by one.

    python benchmarks/bench_evaluate.py [--rows 60]

The base of the shipped recipes (SmolLM2-135M) on generated orders, greedily, to the end of a turn: 32 at a
time, beside the same rows one by one; then the likelihoods of four labels after each prompt (the prompt
once), beside a whole row for each label. In turns, the best of two rounds.
"""

import argparse
import time
from collections.abc import Callable

from data_prep.chat.tokenization import tokenize
from data_prep.table.documents import Document
from finetune.data import prepare_data
from finetune.evaluation.label_likelihood import label_likelihoods
from finetune.evaluation.losses import document_losses
from finetune.evaluation.predictions import questions_of, with_answer
from finetune.generation.generate import generate
from finetune.generation.loading import load_ready
from finetune.models.device import choose_precision
from finetune.recipe.load import load_recipe
from finetune.runs.target import Target

LABELS = ("positive", "negative", "neutral", "no opinion at all")
BATCH, NEW_TOKENS, ROUNDS = 32, 64, 2


def main() -> None:
    """Two lines, each with the seconds of both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60, help="how many orders")
    arguments = parser.parse_args()
    recipe = load_recipe("quickstart", [f"data.evaluation.sources.0.rows={arguments.rows}"]).recipe
    model, tokenizer = load_ready(
        Target(recipe.model, None, recipe, "the base"), dtype=choose_precision("auto").dtype
    )
    questions = questions_of(prepare_data(recipe, tokenizer).evaluation_rows, tokenizer)
    prompts = [question.prompt_ids for question in questions]
    placed = [(question.place, question.example) for question in questions]

    def answers(batch_size: int) -> object:
        return generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_size=batch_size)

    def whole_rows() -> None:
        rows: list[Document] = tokenize(
            [(p, with_answer(e, label)) for p, e in placed for label in LABELS], tokenizer, "last"
        )
        document_losses(model, rows, BATCH)

    def likelihoods() -> object:
        return label_likelihoods(model, tokenizer, placed, LABELS, BATCH)

    print(f"{len(prompts)} prompts, at most {NEW_TOKENS} new tokens, {choose_precision('auto').name}")
    compare("answers", "one by one", lambda: answers(1), f"{BATCH} at a time", lambda: answers(BATCH))
    compare(f"{len(LABELS)} labels", "a row each", whole_rows, "prompt once", likelihoods)


def compare(
    what: str, first: str, one: Callable[[], object], second: str, other: Callable[[], object]
) -> None:
    """Both in turns; the best of each."""
    seconds: dict[str, list[float]] = {first: [], second: []}
    for _ in range(ROUNDS):
        for name, work in ((first, one), (second, other)):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    slow, fast = min(seconds[first]), min(seconds[second])
    print(f"{what:<10} {first} {slow:6.1f} s   {second} {fast:6.1f} s   {slow / fast:.1f}x", flush=True)


if __name__ == "__main__":
    main()
