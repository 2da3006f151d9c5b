"""What `finetune convert` makes of configurations that lie in folders, and what becomes of their keys.

    python benchmarks/bench_convert.py FOLDER [FOLDER ...]
    python benchmarks/bench_convert.py axolotl/examples torchtune/recipes/configs

A folder is one of a checkout of a tool's repository, or of anybody's configurations. A file counts where it
is recognised as a tool's; how processes are started and other files are left out. Keys are those that at
least three of a tool's files set, sections of lists taken together.
"""

import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from finetune.conversion import Conversion, ConvertError, convert_file
from finetune.errors import FinetuneError

KINDS = (".yaml", ".yml", ".json", ".toml", ".sh")
OTHERS = ("no tool is known", "no training command", "training commands", "how processes are started")
"""What the messages say of files that are no configuration of one training."""
UNFIT = ("multimodal", "a model that sees", "no text model", "images, videos", "a causal language model")
"""And of models that aren't text models."""
NAMED = 3


@dataclass
class Found:
    """The files of one tool."""

    same: int = 0
    changed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    fates: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """How often each key was carried, carried otherwise, not carried, or not known."""

    def add(self, conversion: Conversion) -> None:
        """A file that was converted."""
        if conversion.complete:
            self.same += 1
        else:
            self.changed += 1
        told = dict[str, str]()
        for fate in ("dropped", "otherwise", "carried"):
            for line in getattr(conversion, fate):
                unknown = "that is known here" in line.how
                told[line.key] = "unknown" if unknown else fate
        for key, fate in told.items():
            if "(default" not in key and not key.startswith("("):
                self.fates[re.sub(r"\.\d+(?=\.|$)", "", key)][fate] += 1


def main() -> None:
    """A line for each tool, then why files were refused."""
    tools: dict[str, Found] = defaultdict(Found)
    for folder in map(Path, sys.argv[1:]):
        for file in sorted(path for path in folder.rglob("*") if path.suffix in KINDS):
            try:
                conversion = convert_file(file)
            except FinetuneError as error:
                said = str(error)
                if not isinstance(error, ConvertError) or not any(text in said for text in (*OTHERS, *UNFIT)):
                    tools["refused"].refused[f"{file}: {said.partition(': ')[2][:100]}"] += 1
                continue
            tools[conversion.tool].add(conversion)
    refused = tools.pop("refused", Found()).refused
    print(
        "| tool | files | same result | changes | keys | occurrences | carried | otherwise | not | unknown |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, found in sorted(tools.items()):
        print(row(name, [found]))
    print(row("all", list(tools.values())))
    print(f"\n{len(refused)} refused:", *sorted(refused), sep="\n    ")


def row(name: str, tools: list[Found]) -> str:
    """A line of the table."""
    keys = [fates for found in tools for fates in found.fates.values() if fates.total() >= NAMED]
    counted = sum(keys, Counter[str]())
    shares = [
        f"{counted[fate] / max(1, counted.total()):.1%}"
        for fate in ("carried", "otherwise", "dropped", "unknown")
    ]
    same, changed = sum(found.same for found in tools), sum(found.changed for found in tools)
    cells = [name, same + changed, same, changed, len(keys), f"{counted.total():,}", *shares]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
