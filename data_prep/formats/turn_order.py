"""The order of a conversation's turns: fixed as data.turn_order says, then checked; tool results follow the
order of calls."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from data_prep.config import TurnOrder
from data_prep.messages import Message, ToolCall, WeightedText
from data_prep.sources.rows import listed

Turn = tuple[str, Message]
"""A message, and its location in the row: "messages[2]"."""

BETWEEN_MERGED = "\n\n"
"""Separates the texts of neighbouring turns of one role that are merged."""

IN_TURN = "an optional system message comes first, then user and assistant take turns"
SKIP = "data.on_bad_row: skip leaves such rows out"

TurnOrders = Collection[TurnOrder]


def mended(turns: Sequence[Turn], order: TurnOrders, changes: set[str]) -> list[Turn]:
    """The turns, fixed as data.turn_order says; what was done is added to `changes`. Raises ValueError."""
    found = list(turns)
    if "drop_greeting" in order:
        first = next((index for index, (_, message) in enumerate(found) if message.role == "user"), 0)
        before = [turn for turn in found[:first] if turn[1].role != "assistant" or turn[1].tool_calls]
        changes |= {"drop_greeting"} if len(before) < first else set()
        found = before + found[first:]
    if "drop_unanswered" in order:
        last = max(
            (index for index, (_, message) in enumerate(found) if message.role == "assistant"),
            default=len(found),
        )
        changes |= {"drop_unanswered"} if found[last + 1 :] else set()
        found = found[: last + 1]
    if "merge_neighbours" in order:
        merged = _merged(found)
        changes |= {"merge_neighbours"} if len(merged) < len(found) else set()
        found = merged
    return found


def checked(turns: Sequence[Turn], field: str, order: TurnOrders, changes: set[str]) -> tuple[Message, ...]:
    """The messages, results in the order of their calls. Raises ValueError, naming the message, if the order
    of the roles is not one that can be trained on."""
    if not turns:
        raise ValueError(f"{field} is empty; a conversation needs a user turn and an assistant turn")
    messages = _with_results_in_order(turns, order, changes)
    problem = _problem(turns)
    if problem is not None and "keep" not in order:
        raise ValueError(f"{problem}, and {SKIP}")
    changes |= {"keep"} if problem is not None else set()
    if not any(message.role == "assistant" for message in messages):
        raise ValueError(f"{field} has no assistant turn, so there is nothing to learn")
    if messages[-1].role != "assistant":
        raise ValueError(
            f"{field} ends with a {messages[-1].role} turn; the last turn must be the assistant's: "
            f"data.turn_order: [drop_unanswered] leaves out what comes after it, and {SKIP}"
        )
    return tuple(messages)


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbouring turns of one role as one; nothing is merged into a turn with calls, whose results must
    follow it."""
    found: list[Turn] = []
    for place, message in turns:
        before = found[-1][1] if found else None
        if before is None or before.role != message.role or message.role == "tool" or before.tool_calls:
            found.append((place, message))
            continue
        if message.role == "assistant" and before.loss_weight != message.loss_weight:
            raise ValueError(
                f"{place} can't be merged with the assistant's turn before it, because their weights differ; "
                "give both the same weight"
            )
        if message.reasoning and before.content:
            raise ValueError(
                f"{place} can't be merged with the turn before it: its reasoning would come after an answer"
            )
        content, reasoning = (
            BETWEEN_MERGED.join(filter(None, texts))
            for texts in ((before.content, message.content), (before.reasoning, message.reasoning))
        )
        found[-1] = (
            found[-1][0],
            replace(
                message,
                content=content,
                reasoning=reasoning,
                weight=before.weight,
                parts=_merged_parts(before, message),
            ),
        )
    return found


def _merged_parts(*messages: Message) -> tuple[WeightedText, ...]:
    """The parts of a merged turn; none if neither message has any."""
    if not any(message.parts for message in messages):
        return ()
    found: list[WeightedText] = []
    for message in messages:
        if message.content:
            found += [(BETWEEN_MERGED, 1.0)] if found else []
            found += message.parts or [(message.content, 1.0)]
    return tuple(found)


def _problem(turns: Sequence[Turn]) -> str | None:
    """What is wrong with the order of the roles, and what data.turn_order can do; None where system, if there
    is one, comes first, and user and assistant take turns."""
    before: Message | None = None
    for index, (place, message) in enumerate(turns):
        if message.role != "tool" and not (index == 0 and message.role == "system"):
            expected = "assistant" if before is not None and before.role in ("user", "tool") else "user"
            if message.role != expected:
                said = f"{place}.role is {message.role!r} where {expected!r} was expected: {IN_TURN}"
                return f"{said}; data.turn_order: {_way_out(turns[index - 1][1] if index else None, message)}"
        before = message if message.role != "system" else before
    return None


def _way_out(before: Message | None, message: Message) -> str:
    if before is not None and before.role == message.role:
        return "[merge_neighbours] merges neighbouring turns of one role, [keep] keeps them as they are"
    if message.role == "assistant" and (before is None or before.role == "system"):
        return "[drop_greeting] leaves out the assistant's turns before the first user turn"
    return "[keep] keeps the turns as they are, if the chat template allows it"


def _with_results_in_order(turns: Sequence[Turn], order: TurnOrders, changes: set[str]) -> list[Message]:
    """The messages, the results of each turn's calls in the order of the calls. Raises ValueError where one
    is missing.

    A result after a turn that writes its call only as text may be kept.
    """
    found: list[Message] = []
    index = 0
    while index < len(turns):
        place, message = turns[index]
        if message.role == "tool" and "keep" not in order:
            raise ValueError(
                f"{place} is a tool result without a preceding tool call that it could answer; "
                f"data.turn_order: [keep] keeps it, if the chat template allows it, and {SKIP}"
            )
        changes |= {"keep"} if message.role == "tool" else set()
        found.append(message)
        index += 1
        end = index
        while message.tool_calls and end < len(turns) and turns[end][1].role == "tool":
            end += 1
        if message.tool_calls and index < len(turns):
            results = _by_call((place, message), turns[index:end], turns[end:][:1])
            changes |= {"tool_results"} if results != [result for _, result in turns[index:end]] else set()
            found += results
            index = end
    return found


def _by_call(calling: Turn, results: Sequence[Turn], after: Sequence[Turn]) -> list[Message]:
    """The result of each call of a turn: the one with its id, or the next one with its tool's name or no
    name."""
    place, calls = calling[0], calling[1].tool_calls
    by_id = {call.id: index for index, call in enumerate(calls) if call.id is not None}
    if len(by_id) < sum(call.id is not None for call in calls):
        raise ValueError(
            f"{place}: two of its tool calls have the same id; give each its own, so that results can name it"
        )
    if not results:
        raise ValueError(
            f"{after[0][0]}.role is {after[0][1].role!r} where the result of a tool call ('tool') was "
            "expected"
        )
    waiting, answered = dict(enumerate(calls)), dict[int, Message]()
    all_named = len(by_id) == len(calls)
    # Results with an id first; the others take the remaining calls.
    for where, result in sorted(results, key=lambda turn: all_named and turn[1].tool_call_id is None):
        wanted = result.tool_call_id if all_named else None
        if wanted is not None and wanted not in by_id:
            raise ValueError(f"{where}.tool_call_id is {wanted!r}; the calls before it are {listed(by_id)}")
        if wanted is not None and by_id[wanted] in answered:
            raise ValueError(f"{where}.tool_call_id is {wanted!r}, which an earlier result already answers")
        if not waiting:
            raise ValueError(
                f"{where} is a tool result without a preceding tool call that it could answer; {SKIP}"
            )
        index = by_id[wanted] if wanted is not None else _first_of(waiting, result.name, where)
        answered[index] = result
        del waiting[index]
    for call in waiting.values():
        known = f"{call.name!r}" + (f" (id {call.id!r})" if call.id is not None else "")
        raise ValueError(
            f"{place}: its call of {known} has no result; each call of a turn needs one, after the turn"
        )
    return [answered[index] for index in range(len(calls))]


def _first_of(waiting: dict[int, ToolCall], name: str | None, place: str) -> int:
    """The first call that a result without an id can answer: one of its tool, if it names one."""
    found = next((index for index, call in waiting.items() if name in (None, call.name)), None)
    if found is None:
        left = listed(call.name for call in waiting.values())
        raise ValueError(f"{place}.name is {name!r}; the calls without a result are of {left}")
    return found
