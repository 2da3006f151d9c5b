"""Whether the real llama.cpp makes of a file what was exported: the same tokens, prompts, ends, numbers and
answers.

What was exported is computed by transformers in float32, llama.cpp computes with float32 keys and values.
Shapes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.rendering import ChatRenderer, end_of_turn_ids
from data_prep.errors import DataError
from data_prep.table.documents import Document
from data_prep.tokenizers.tokens import ids_of
from finetune.errors import ExportError
from finetune.exporting.llama_cpp.bounds import DIFFERENCE_BOUNDS, bound_on_kl
from finetune.exporting.llama_cpp.server import LlamaCpp, running
from finetune.exporting.llama_cpp.texts import texts_for
from finetune.generation.generate import generate_ids
from finetune.models.description_check import CONVERSATIONS

ROWS, POSITIONS = 8, 6
"""Documents, and the places in each after which the next token's log-probabilities are compared."""
TOKENS_A_ROW, ANSWER_TOKENS = 96, 24
LIKELIEST = 512
"""Of how many tokens the log-probabilities are compared at each place; all others count as one for the KL."""
SUM_ROUNDING = 2**-25
"""Half a unit in the last place of a float32 just below 1: what one addition may lose."""
CONTEXT = 512
ANSWERS = 4


@dataclass(frozen=True)
class LlamaCppCheck:
    """What llama.cpp made of a file, beside what was exported."""

    version: str
    """Of the wheel xllamacpp."""
    texts: int
    other_tokens: int
    """Texts that become other tokens."""
    prompts: int
    """Conversations whose prompts were compared."""
    places: int
    """Where log-probabilities were compared."""
    largest_difference: float
    """Of a log-probability, in nats, over the likeliest tokens of each place."""
    mean_kl: float
    """KL(exported || llama.cpp), in nats a token."""
    same_likeliest: float
    """The share of places at which both hold the same token for the likeliest."""
    answers: int
    same_answers: int
    """Token by token, or up to a near tie."""
    failures: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """For a person: (name, value) a line."""
        return [
            ("llama.cpp", f"xllamacpp {self.version}, keys and values in float32, no flash attention"),
            (
                "tokens",
                f"{self.texts - self.other_tokens} of {self.texts} texts and {self.prompts} prompts become "
                "the same",
            ),
            (
                "numbers",
                f"at {self.places} places: largest difference of a log-probability "
                f"{self.largest_difference:.2e} nats, mean KL {self.mean_kl:.2e} nats, same likeliest token "
                f"{self.same_likeliest:.1%}",
            ),
            ("answers", f"{self.same_answers} of {self.answers} greedy answers are the same"),
        ]


@dataclass(frozen=True)
class Exported:
    """What was exported, ready to be asked."""

    model: PreTrainedModel
    """In float32."""
    tokenizer: PreTrainedTokenizerFast
    documents: Sequence[Document]
    context: int
    """The longest text that the file says it reads."""
    pre_tokenizer: str | None = None
    """llama.cpp's name for how the tokenizer splits texts."""


def check_in_llama_cpp(
    file: Path, exported: Exported, quantize: str, max_kl: float | None, lora: Path | None = None
) -> LlamaCppCheck:
    """Load a file in llama.cpp and compare. Raises CheckFailed where llama.cpp doesn't read it."""
    with running(file, min(CONTEXT, exported.context), lora) as llama_cpp:
        texts = texts_for(exported.tokenizer, exported.pre_tokenizer)
        other = [
            text for text in texts if llama_cpp.tokens(text) != ids_of(text, exported.tokenizer, special=True)
        ]
        failures = _other_tokens(other)
        prompts, wrong = _compare_prompts(llama_cpp, exported.tokenizer)
        failures += wrong + _compare_ends(llama_cpp, exported)
        numbers = compare_numbers(llama_cpp, exported)
        bound = DIFFERENCE_BOUNDS.get(quantize)
        answers, same = _compare_answers(llama_cpp, exported, prompts, bound)
    failures += numbers.failures(quantize, max_kl)
    if bound is not None and same < answers:
        failures.append(
            f"{answers - same} of {answers} greedy answers differ from those of what was exported"
        )
    return LlamaCppCheck(
        version("xllamacpp"), len(texts), len(other), len(prompts), numbers.places, numbers.largest,
        numbers.mean_kl, numbers.same_likeliest, answers, same, tuple(failures),
    )  # fmt: skip


def _other_tokens(texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    return [f"{len(texts)} texts become other tokens in llama.cpp, the first {texts[0]!r}"]


def _compare_prompts(
    llama_cpp: LlamaCpp, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[list[int]], list[str]]:
    """The prompts of conversations in tokens, and what llama.cpp makes of them otherwise."""
    try:
        renderer = ChatRenderer(tokenizer)
    except DataError:
        return [], []
    prompts, wrong = [], list[str]()
    for messages, tools, asked in CONVERSATIONS:
        if tools or not asked:
            continue
        try:
            prompt = renderer.render_prompt(messages)
        except DataError:
            continue  # the template refuses such a conversation
        ids = ids_of(prompt, tokenizer)
        theirs = llama_cpp.prompt(renderer.turns(messages))
        if llama_cpp.tokens(theirs) != ids:
            wrong.append(
                f"the chat template writes {theirs[:200]!r} in llama.cpp, and {prompt[:200]!r} was exported"
            )
        prompts.append(ids)
    return prompts, wrong[:1]


def _compare_ends(llama_cpp: LlamaCpp, exported: Exported) -> list[str]:
    """Whether an answer ends in llama.cpp where it does in `finetune generate`."""
    start = list(exported.documents[0].token_ids[:8])
    absent = [token for token in end_of_turn_ids(exported.tokenizer) if not llama_cpp.ends_at(token, start)]
    if not absent:
        return []
    names = exported.tokenizer.convert_ids_to_tokens(absent)
    return [f"llama.cpp doesn't end an answer at {' and '.join(map(str, names))}, which ended it in training"]


@dataclass(frozen=True)
class Numbers:
    """Log-probabilities, compared."""

    places: int
    largest: float
    mean_kl: float
    same_likeliest: float

    def failures(self, quantize: str, max_kl: float | None) -> list[str]:
        """The bounds that don't hold, in words."""
        difference, most = DIFFERENCE_BOUNDS.get(quantize), bound_on_kl(quantize, max_kl)
        found = []
        if difference is not None and not self.largest <= difference:
            found.append(
                f"a log-probability differs by {self.largest:.2e} nats in llama.cpp; at most "
                f"{difference:.0e} was expected of {quantize}"
            )
        if most is not None and not self.mean_kl <= most:
            found.append(
                f"the mean KL is {self.mean_kl:.2e} nats a token, and at most {most:.0e} was expected of "
                f"{quantize}"
            )
        return found


def compare_numbers(llama_cpp: LlamaCpp, exported: Exported) -> Numbers:
    """Log-probabilities of the likeliest tokens at places of the documents. Raises ExportError where the
    model itself has none, and CheckFailed where llama.cpp has none."""
    largest, divergences, same = 0.0, list[float](), 0
    for document in exported.documents[:ROWS]:
        ids = list(document.token_ids[: min(TOKENS_A_ROW, exported.context - 1)])
        ours = _log_probabilities(exported.model, ids)
        if not bool(ours.isfinite().all()):  # which no comparison would find: NaN is beyond no bound
            raise ExportError("the model's log-probabilities are NaN or infinite: export one that answers.")
        for place in _places(len(ids)):
            theirs = llama_cpp.log_probabilities(ids[: place + 1], min(LIKELIEST, ours.shape[-1]))
            tokens = torch.tensor(list(theirs))
            mine, its = ours[place][tokens], torch.tensor(list(theirs.values()), dtype=torch.float64)
            largest = max(largest, float((mine - its).abs().max()))
            divergences.append(kl_of(mine, its, ours.shape[-1]))
            same += int(ours[place].argmax() == tokens[its.argmax()])
    places = len(divergences)
    return Numbers(places, largest, sum(divergences) / places, same / places)


def _log_probabilities(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """T x V, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits.double().log_softmax(-1)


def _places(length: int) -> list[int]:
    """Places spread over a text, its last one among them."""
    count = min(POSITIONS, length)
    return sorted({length - 1 - index * length // count for index in range(count)})


def kl_of(mine: torch.Tensor, its: torch.Tensor, vocabulary: int) -> float:
    """KL(mine || its), in nats, of the listed tokens' log-probabilities, all others as one.

    llama.cpp adds the probabilities of a vocabulary up in float32, one after the other. What that rounds
    shifts all of its log-probabilities alike: where the listed tokens' shares differ by no more, they count
    as the same.
    """
    share, its_share = mine.exp().sum(), its.exp().sum()
    among = (mine.exp() * ((mine - share.log()) - (its - its_share.log()))).sum()
    between = torch.zeros(())
    if abs(share - its_share) > vocabulary * SUM_ROUNDING:
        others, its_others = ((1 - one).clamp(min=1e-9) for one in (share, its_share))
        between = share * (share / its_share).log() + others * (others / its_others).log()
    return max(0.0, float(among + between))


def _compare_answers(
    llama_cpp: LlamaCpp, exported: Exported, prompts: Sequence[Sequence[int]], bound: float | None
) -> tuple[int, int]:
    """How many answers were asked for, and how many are the same."""
    asked = [*prompts, *filter(None, map(_prompt_of, exported.documents))]
    asked = [ids for ids in asked if len(ids) + ANSWER_TOKENS < exported.context][:ANSWERS]
    if not asked:
        return 0, 0
    ends = set(end_of_turn_ids(exported.tokenizer))
    ours = generate_ids(exported.model, exported.tokenizer, asked, max_new_tokens=ANSWER_TOKENS, batch_size=1)
    same = 0
    for prompt, answer in zip(asked, ours, strict=True):
        mine = [token for token in answer if token not in ends]
        its = [token for token in llama_cpp.answer(prompt, ANSWER_TOKENS) if token not in ends]
        same += mine == its or (bound is not None and _is_tie(exported.model, prompt, mine, its, bound))
    return len(asked), same


def _is_tie(
    model: PreTrainedModel, prompt: Sequence[int], mine: Sequence[int], its: Sequence[int], bound: float
) -> bool:
    """Whether two answers part at tokens that are as likely as the bound can tell."""
    place = next(
        (index for index, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1]), None
    )
    if place is None:
        return False  # one of the two goes on
    after = _log_probabilities(model, [*prompt, *mine[:place]])[-1]
    return bool(after[mine[place]] - after[its[place]] <= 2 * bound)


def _prompt_of(document: Document) -> list[int]:
    """What stands before the first learned token."""
    return list(document.token_ids[: document.spans[0][0]])[:TOKENS_A_ROW] if document.spans else []
