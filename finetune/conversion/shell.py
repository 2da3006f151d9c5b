"""A training command in a shell script, read and never run: words are split as a shell splits them, and
variables are refused unless the script sets them to plain text."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.conversion.given import ConvertError, Given, GivenKey
from finetune.recipe.reading.yaml_tree import plain_scalar, shorten

COMMANDS = {
    ("swift/cli/sft.py",): "swift",
    ("swift/cli/pt.py",): "swift",
    ("swift/cli/rlhf.py",): "swift",
    ("swift", "sft"): "swift",
    ("swift", "pt"): "swift",
    ("swift", "rlhf"): "swift",
    ("llamafactory-cli", "train"): "llamafactory",
    ("src/train.py",): "llamafactory",
    ("axolotl", "train"): "axolotl",
    ("axolotl.cli.train",): "axolotl",
    ("tune", "run"): "torchtune",
    ("oumi", "train"): "oumi",
    ("trl", "sft"): "trl",
    ("trl", "dpo"): "trl",
    ("trl", "kto"): "trl",
    ("trl", "reward"): "trl",
    ("trl", "grpo"): "trl",
    ("trl", "rloo"): "trl",
    ("sft.py",): "trl",
    ("dpo.py",): "trl",
    ("kto.py",): "trl",
    ("reward_modeling.py",): "trl",
    ("orpo.py",): "trl",
    ("cpo.py",): "trl",
    ("mlx_lm.lora",): "mlx_lm",
    ("mlx_lm", "lora"): "mlx_lm",
    ("litgpt", "finetune", "lora"): "litgpt",
    ("litgpt", "finetune", "full"): "litgpt",
    ("litgpt", "finetune"): "litgpt",
    ("litgpt", "finetune_lora"): "litgpt",
    ("litgpt", "finetune_full"): "litgpt",
}
"""How a training command begins, and whose it is; the longer of two first."""
FILES = (".yaml", ".yml", ".json")
CONFIG = ("config", "c", "config_file")
"""Options that name a file with the rest of the options."""
WORD = {"litgpt": "checkpoint_dir", "torchtune": "recipe"}
"""Tools whose command has a word of its own, and the option that it stands for."""
ASSIGNMENT = re.compile(
    r"(?:export\s+)?([A-Za-z_]\w*)=(\"[^\"$`]*\"|'[^']*'|\"?\$\w+\"?|\"?\$\{\w+\}\"?|[^\s\"'$`;&|()]*)"
)
SUM = re.compile(r"\$\(\s*expr\s+([^()`]+?)\s*\)|\$\(\(([^()`]+)\)\)")
TERM = re.compile(r"\s*(\d+|\$?[A-Za-z_]\w*|\$\{\w+\}|\\?[-+*/])")
"""An arithmetic expression of a shell, and a part of it."""
PROCESSES, NODES = "NPROC_PER_NODE", "NNODES"
LAUNCHERS = {"nproc_per_node": PROCESSES, "num_gpus": PROCESSES, "num_processes": PROCESSES, "nnodes": NODES}
"""Options of what starts processes, and the variables that say the same."""
OPTION = re.compile(r"--|-[A-Za-z]")
TOOL = "(tool)"
"""The key under which a script's entries name the tool whose command it is."""
VERB = "(verb)"
"""The key under which they have the last word of the command: sft, rlhf, dpo ..."""


def read_script(content: bytes, file: Path, shown: str) -> Given:
    """The options of the one training command in a script. Raises ConvertError for none, for two, and for a
    variable that the script doesn't set to plain text."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConvertError(f"{shown}: the script is not UTF-8") from None
    variables: dict[str, str] = {}
    found: list[tuple[int, list[str], str, str]] = []
    launched: dict[str, str] = {}
    for number, line in _logical(text):
        words = _words(_calculated(line, variables), number, shown)
        while words and (match := ASSIGNMENT.fullmatch(_quoted(words[0]))):
            variables[match[1]] = _known(words.pop(0).partition("=")[2], variables)
        if words[:1] == ["export"] and len(words) > 1 and "=" in words[1]:
            name, _, value = words[1].partition("=")
            variables[name] = _known(value, variables)
            continue
        command = _command(words)
        if command:
            verb = Path(words[command[0] - 1]).stem
            found.append((number, words[command[0] :], command[1], verb))
            launched = _launched(words[: command[0]])
    if len(found) != 1:
        if found:
            lines = ", ".join(str(number) for number, *_ in found)
            raise ConvertError(
                f"{shown}: {len(found)} training commands, on lines {lines}; convert reads one"
            )
        known = ", ".join(dict.fromkeys(command[0] for command in COMMANDS))
        raise ConvertError(f"{shown}: got no training command, expected one of {known}")
    number, words, tool, verb = found[0]
    own = WORD.get(tool)
    variables |= launched
    entries = {
        key: GivenKey(key, value, shown, number)
        for key, value in _options(words, variables, number, shown, own)
    }
    entries = {
        key: GivenKey(key, entry.value, shown, _line_of(text, key, number)) for key, entry in entries.items()
    }
    return Given(file, shown, entries, environment={**variables, TOOL: tool, VERB: verb})


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines, with those that end in a backslash joined, and the number of each one's first."""
    whole, start = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("#"):
            continue
        start = start or number
        if stripped.endswith("\\"):
            whole += stripped[:-1] + " "
            continue
        yield start, whole + stripped
        whole, start = "", 0
    if whole:
        yield start, whole


def _words(line: str, number: int, shown: str) -> list[str]:
    try:
        return shlex.split(_without_comment(line))
    except ValueError:
        if not any(" ".join(words) in line for words in COMMANDS):
            return []  # a line of another command, over several lines
        raise ConvertError(f"{shown}:{number}: a quotation mark is not closed") from None


def _calculated(line: str, variables: dict[str, str]) -> str:
    """$(expr A / B) and $((A / B)) of whole numbers, or of variables that are, as their value: products and
    quotients, or sums and differences. Nothing else is calculated."""

    def value(match: re.Match[str]) -> str:
        text = match[1] or match[2]
        parts = [part.lstrip("\\") for part in TERM.findall(text)]
        numbers = [variables.get(word.strip("${}"), word) for word in parts[::2]]
        signs, whole = parts[1::2], "".join(TERM.sub("", text).split()) == ""
        alike = set(signs) <= set("*/") or set(signs) <= set("+-")
        if not (whole and alike and len(numbers) == len(signs) + 1 and all(map(str.isdecimal, numbers))):
            return match[0]
        result = int(numbers[0])
        for sign, number in zip(signs, map(int, numbers[1:]), strict=True):
            if sign == "/" and not number:
                return match[0]
            result = {"*": result * number, "+": result + number, "-": result - number}.get(
                sign, result // (number or 1)
            )
        return str(result)

    return SUM.sub(value, line)


def _without_comment(line: str) -> str:
    """What stands before a comment. A # begins one at the start of a word alone: rows#500 is a word."""
    quote, before = "", " "
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote and (quote == "'" or before != "\\") else quote
        elif letter in "'\"" and before != "\\":
            quote = letter
        elif letter == "#" and before in " \t;&|()":
            return line[:place]
        before = letter
    return line


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}{equals}{shlex.quote(value)}" if "$" not in value and "`" not in value else word


def _command(words: list[str]) -> tuple[int, str] | None:
    """Where the options of a training command begin, and the tool."""
    for start in range(len(words)):
        for command, tool in COMMANDS.items():
            here = words[start : start + len(command)]
            if len(here) == len(command) and all(map(_is_named, here, command)):
                return start + len(command), tool
    return None


def _launched(words: list[str]) -> dict[str, str]:
    """What torchrun, accelerate or DeepSpeed before the command say of processes, under torchrun's names."""
    found = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
        if word.startswith("-") and name in LAUNCHERS:
            found[LAUNCHERS[name]] = value if equals else after
    return found


def _is_named(word: str, name: str) -> bool:
    """Whether a word is the program or script, which may be in a folder."""
    return word == name or word.endswith(f"/{name}")


def _options(
    words: list[str], variables: dict[str, str], number: int, shown: str, own: str | None
) -> Iterator[tuple[str, Any]]:
    """--key value, --key=value, --key a b c, and --key alone; `own` is what a first word without a key is."""
    key: str | None = None
    values: list[str] = []
    for word in [*words, "--"]:
        if word in (";", "&&", "||", "|", "&", ">", "2>&1", ">>"):
            word = "--"
        if not OPTION.match(word):
            if key is not None:
                values.append(_expanded(word, variables, number, shown, key))
            elif own is not None and not word.endswith(FILES):
                yield own, _expanded(word, variables, number, shown, own)
                own = None
            else:
                raise ConvertError(f"{shown}:{number}: {_stray(word)}")
            continue
        if key in CONFIG:
            raise ConvertError(f"{shown}:{number}: {_stray(values[0] if values else word, file=True)}")
        if key is not None:
            yield key, _value(values)
        if word == "--":
            return
        name, equals, value = word.lstrip("-").partition("=")
        key = name.replace("-", "_")
        values = [_expanded(value, variables, number, shown, key)] if equals else []


def _known(text: str, variables: dict[str, str]) -> str:
    """A text that is one variable alone, as its value."""
    match = re.fullmatch(r"\$(?:(\w+)|\{(\w+)\})", text)
    return variables.get(match[1] or match[2], text) if match else text


def _stray(word: str, *, file: bool = False) -> str:
    """What is said of a word that is no option, or names the file that has them."""
    if file or word.endswith(FILES):
        return f"the command reads {shorten(word)}: convert that file"
    if "$" in word or "`" in word:
        return f"got {shorten(word)}, which stands for options; no variable is expanded to words: write them"
    return f"got the word {shorten(word)}, expected an option (--key value)"


def _expanded(word: str, variables: dict[str, str], number: int, shown: str, key: str) -> str:
    if "`" in word or "$(" in word:
        raise ConvertError(
            f"{shown}:{number}: {key}: got {shorten(word)}; no command of a script is run: write the value"
        )

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables or "$" in variables[name] or "`" in variables[name]:
            raise ConvertError(
                f"{shown}:{number}: {key}: got {shorten(word)}, whose variable {name} has no plain value in "
                "this script; write the value"
            )
        return variables[name]

    return re.sub(r"\$\{(\w+)\}|\$(\w+)", value, word)


def _value(values: list[str]) -> Any:
    plain = [_plain(value) for value in values]
    return True if not plain else plain[0] if len(plain) == 1 else plain


def _plain(text: str) -> Any:
    if text[:1] in "{[":
        import json

        try:
            return json.loads(text)
        except ValueError:
            return text
    try:
        return plain_scalar(text)
    except ValueError:
        return text


def _line_of(text: str, key: str, start: int) -> int:
    """The line on which an option stands."""
    named = re.compile(rf"--{key.replace('_', '[-_]')}\b")
    lines = text.splitlines()
    return next((n for n in range(start, len(lines) + 1) if named.search(lines[n - 1])), start)
