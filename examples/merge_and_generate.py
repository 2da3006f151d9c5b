"""Merge a run, check that the merged model is the run's, and ask it.

python examples/merge_and_generate.py RUN [PROMPT ...]
"""

import logging
import sys
from pathlib import Path

import finetune


def main(folder: str, *prompts: str) -> None:
    run = finetune.Run(folder)
    report = run.merge(Path(folder) / "merged")
    print(report.verification.verdict)
    merged, tuned = finetune.load(report.output), run.load()
    texts = list(prompts) or ["Two pizzas, please."]
    for text, answer, before in zip(texts, merged.generate(texts), tuned.generate(texts), strict=True):
        print(f"> {text}\n{answer}" + ("" if answer == before else f"\n(base + adapter: {before})"))
    for piece in merged.stream(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": texts[0]}]
    ):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", format="%(message)s")
    main(*sys.argv[1:])
