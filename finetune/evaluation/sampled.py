"""Rejection sampling: a model answers a recipe's prompts several times, answers are scored, and those that a
rule keeps become rows to train on (Yuan et al. 2023, arXiv:2308.01825).

What is drawn depends on the seed, the prompt and the number of the answer alone. Scored answers are kept
beside the output until it is complete, so that the same command goes on after it was interrupted.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data_prep.chat.rendering import turn_of
from data_prep.messages import Conversation, Example
from finetune.data import prepare_data
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import OnProgress, questions_of
from finetune.evaluation.rewards import Rewards
from finetune.evaluation.scored_answers import PARTIAL, Partial, ScoredAnswer
from finetune.generation.loading import ModelTarget, fingerprint_of, load_ready
from finetune.generation.sampler import sample
from finetune.models.device import choose_precision
from finetune.objectives import objective_of
from finetune.objectives.grpo import GrpoOptions
from finetune.recipe.rules.evaluation import labels_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.rewards import OWN_KEYS, RewardKind, RewardSection
from finetune.runs.folder import write_entries
from finetune.scoring.measured import Prediction, Question

PROMPTS_AT_A_TIME = 32
"""An interruption loses the answers to at most so many."""

CHOOSING = ("keep", "at_least", "rows_at_a_time")
"""Options that change nothing of what is drawn."""

Keep = Literal["best", "all", "pairs"]


@dataclass(frozen=True)
class SampleOptions:
    """How answers are drawn, and which are kept."""

    count: int = 8
    """Answers to each prompt."""
    keep: Keep = "best"
    """best: the answer with the highest score; all; pairs: the highest and the lowest, where they differ."""
    at_least: float | None = None
    """The score of an answer that is kept; of a pair, of the chosen one."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    rows_at_a_time: int = 64
    seed: int = 0


def options_of(**given: Any) -> SampleOptions:
    """The options, checked. Raises FinetuneError for one that can't be."""
    options = SampleOptions(**given)
    if options.keep not in get_args(Keep):
        raise FinetuneError(f"--keep is {options.keep!r}; expected {', '.join(get_args(Keep))}.")
    if options.count < 1:
        raise FinetuneError(f"--n is {options.count}; expected at least 1.")
    if options.keep == "pairs" and options.count == 1:
        raise FinetuneError("--keep pairs compares the answers to a prompt; set --n to at least 2.")
    for name, number in (("--temperature", options.temperature), ("--at-least", options.at_least)):
        if number is not None and not math.isfinite(number):
            raise FinetuneError(f"{name} is {number}; expected a finite number.")
    if not options.top_p > 0:
        raise FinetuneError(f"--top-p is {options.top_p:g}: nothing could be drawn; expected more than 0.")
    if not options.temperature > 0:
        raise FinetuneError(
            f"--temperature is {options.temperature:g}: all answers to a prompt would be the same one; "
            "expected more than 0."
        )
    return options


def table_of(recipe: Recipe, kinds: Sequence[str] | None) -> tuple[dict[str, RewardSection], str]:
    """The table of these kinds of rewards, or the recipe's own, and where its entries are named.

    Raises FinetuneError for a kind that isn't known, or needs keys of its own, and where there is no table.
    """
    if not kinds:
        found = objective_of(recipe).options
        if not isinstance(found, GrpoOptions):
            raise FinetuneError(
                "it is not said what an answer is worth: give --score (exact_match, number, rougeL ...), or "
                "a recipe with objective.rewards."
            )
        return dict(found.rewards), "objective.rewards."
    for kind in kinds:
        if kind not in get_args(RewardKind):
            raise FinetuneError(f"--score {kind}: expected one of {', '.join(get_args(RewardKind))}.")
        if kinds.count(kind) > 1:
            raise FinetuneError(
                f"--score {kind} is given twice; name it once (objective.rewards has weights)."
            )
        if kind in OWN_KEYS:
            raise FinetuneError(
                f"--score {kind} needs keys of its own ({', '.join(OWN_KEYS[kind])}): give it in the "
                "recipe's objective.rewards."
            )
    return {kind: RewardSection.model_validate({"kind": kind}) for kind in kinds}, "--score "


@dataclass(frozen=True)
class SampledRows:
    """What was drawn, and what is left of it."""

    output: str
    prompts: int
    answers: int
    cut: int
    empty: int
    equal: int
    """Answers that are there already, of the same prompt."""
    rows: int
    """What was written: answers, or pairs."""
    prompts_kept: int
    """Prompts of which something was."""
    mean_score: float
    """Of all answers."""
    mean_best_score: float
    """Of each prompt's best."""
    highest: float
    """Of the answers that are whole; nan where none is."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """For a person: (name, value) a line."""
        return [
            ("prompts", f"{self.prompts:,}, something kept of {self.prompts_kept:,}"),
            (
                "answers",
                f"{self.answers:,}; left out: {self.cut:,} that were cut, {self.empty:,} that are empty, "
                f"{self.equal:,} that are there already",
            ),
            ("score", f"mean {self.mean_score:.3f}, of each prompt's best {self.mean_best_score:.3f}"),
            ("rows", f"{self.rows:,}"),
            ("output", self.output),
        ]


def sample_rows(
    recipe: Recipe,
    target: ModelTarget,
    output: Path,
    table: Mapping[str, RewardSection],
    options: SampleOptions,
    *,
    named: str,
    allow_code: Collection[str] = (),
    progress: OnProgress | None = None,
) -> SampledRows:
    """Answer the prompts that the recipe trains on, score the answers by the table, and write what is kept.

    `named` is where the table's scores are named, for messages. Raises FinetuneError where nothing is asked,
    a score can't be had, the output exists, or what is beside it comes from another command.
    """
    if output.exists():
        raise FinetuneError(f"--output {output} exists; name another file, or remove it.")
    if not output.parent.is_dir():
        raise FinetuneError(f"--output {output} can't be written: there is no folder {output.parent}.")
    if target.model.classifies:
        raise FinetuneError(f"{target.description} has a classification head, and answers nothing.")
    precision = choose_precision(recipe.train.precision)
    scoring = Rewards(table, labels_of(recipe), precision=precision, allow_code=allow_code, named=named)
    model, tokenizer = load_ready(target, dtype=precision.dtype)
    data = prepare_data(recipe, tokenizer, allow_code=allow_code)
    questions = questions_of(data.training_rows(), tokenizer, recipe.data, alone=True)
    if not questions:
        raise FinetuneError("no row of data.train has a prompt, so there is nothing to answer.")
    scoring.check(questions)
    identity = {
        "model": fingerprint_of(target), "prompts": _hash_of(questions), "precision": precision.name,
        "scores": {name: section.model_dump(mode="json") for name, section in table.items()},
        "judges": scoring.identity,
        "options": {key: value for key, value in asdict(options).items() if key not in CHOOSING},
    }  # fmt: skip
    beside = output.with_name(output.name + PARTIAL)
    with closing(Partial(beside, identity, len(questions), options.count)) as partial:
        done = len(partial.answers)
        for first in range(done, len(questions), PROMPTS_AT_A_TIME):
            asked = questions[first : first + PROMPTS_AT_A_TIME]
            drawn = sample(
                model,
                tokenizer,
                [question.prompt_ids for question in asked],
                count=options.count,
                max_new_tokens=options.max_new_tokens,
                batch_size=options.rows_at_a_time,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                min_p=options.min_p,
                seed=options.seed,
            )
            scored = zip(*scoring.of_samples(asked, drawn, tokenizer), strict=True)
            for own in drawn:
                partial.add([_scored(number, *next(scored), table) for number, _ in enumerate(own, 1)])
            if progress is not None:
                progress(len(partial.answers), len(questions))
        provenance = {"model": target.description, "seed": options.seed, "temperature": options.temperature}
        found, rows = _choose(questions, partial.answers, options, provenance, str(output))
        if not rows:
            raise FinetuneError(_why_nothing(found, partial.path))
        write_entries(output, rows)
        partial.path.unlink()
        return found


def _why_nothing(found: SampledRows, partial: Path) -> str:
    """Why no row is kept, and what to change."""
    what = (
        f"nothing is kept of {found.answers:,} answers: {found.cut:,} were cut at --max-new-tokens or at the "
        f"base's last position, {found.empty:,} are empty, and "
    )
    if math.isnan(found.highest):
        return (
            f"{what}no other is left. Give more --max-new-tokens, or a model that ends its answers, and "
            f"remove {partial}, which has these."
        )
    return (
        f"{what}the best of the others scores {found.highest:g}. The scored answers are in {partial}; with "
        "another --keep or --at-least the same command goes on from them."
    )


def _scored(
    number: int, answer: Prediction, values: Sequence[float], table: Mapping[str, RewardSection]
) -> ScoredAnswer:
    scores = dict(zip(table, values, strict=True))
    score = sum(section.weight * scores[name] for name, section in table.items())
    return ScoredAnswer(number, answer.text, score, scores, answer.cuts[0])


def _choose(
    questions: Sequence[Question],
    answers: Sequence[Sequence[ScoredAnswer]],
    options: SampleOptions,
    provenance: dict[str, Any],
    output: str,
) -> tuple[SampledRows, list[dict[str, Any]]]:
    """The rows that the rule keeps, and what became of the others."""
    rows, kept, equal = list[dict[str, Any]](), 0, 0
    for question, own in zip(questions, answers, strict=True):
        whole = [one for one in own if one.is_whole]
        different = list({one.text.strip(): one for one in reversed(whole)}.values())[::-1]
        equal += len(whole) - len(different)
        made = list(_rows_of(question, different, options, provenance))
        rows, kept = rows + made, kept + bool(made)
    drawn = [one for own in answers for one in own]
    scores = [one.score for one in drawn]
    cut = sum(one.cut is not None for one in drawn)
    empty = sum(one.cut is None and not one.is_whole for one in drawn)
    best = [max(one.score for one in own) for own in answers]
    highest = max((one.score for one in drawn if one.is_whole), default=math.nan)
    return SampledRows(
        output, len(questions), len(drawn), cut, empty, equal, len(rows), kept, sum(scores) / len(scores),
        sum(best) / len(best), highest,
    ), rows  # fmt: skip


def _rows_of(
    question: Question, answers: Sequence[ScoredAnswer], options: SampleOptions, provenance: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    ranked = sorted(answers, key=lambda one: -one.score)  # of equals the first that was drawn
    good = [one for one in ranked if options.at_least is None or one.score >= options.at_least]
    if not good:
        return
    if options.keep == "pairs":
        chosen, rejected = good[0], ranked[-1]
        if chosen.score > rejected.score:
            facts = _facts(question, chosen, provenance) | {"rejected": _of_answer(rejected)}
            yield _pair(question.example, chosen.text, rejected.text) | {"sampled": facts}
        return
    for one in good[:1] if options.keep == "best" else sorted(good, key=lambda one: one.number):
        yield _row(question.example, one.text) | {"sampled": _facts(question, one, provenance)}


def _facts(question: Question, one: ScoredAnswer, provenance: dict[str, Any]) -> dict[str, Any]:
    return {"row": question.place} | provenance | _of_answer(one)


def _of_answer(one: ScoredAnswer) -> dict[str, Any]:
    return {"answer": one.number, "score": one.score, "scores": one.scores}


def _asked(example: Conversation) -> dict[str, Any]:
    """What a conversation has before its last answer, and what its template is given."""
    turns = [
        turn_of(message) | ({"reasoning_content": message.reasoning} if message.reasoning else {})
        for message in example.messages[:-1]
    ]
    tools = {"tools": list(example.tools)} if example.tools else {}
    arguments = {"chat_template_kwargs": example.template_arguments} if example.template_arguments else {}
    return {"turns": turns} | tools | arguments


def _row(example: Example, answer: str) -> dict[str, Any]:
    """A row of format messages, or prompt_completion."""
    if not isinstance(example, Conversation):
        return {"prompt": example.prompt, "completion": answer}
    asked = _asked(example)
    return {"messages": [*asked.pop("turns"), {"role": "assistant", "content": answer}]} | asked


def _pair(example: Example, chosen: str, rejected: str) -> dict[str, Any]:
    """A row of format preference."""
    if not isinstance(example, Conversation):
        return {"prompt": example.prompt, "chosen": chosen, "rejected": rejected}
    asked = _asked(example)
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": asked.pop("turns")} | answers | asked


def _hash_of(questions: Sequence[Question]) -> str:
    content = [[list(question.prompt_ids), question.references, question.tests] for question in questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
