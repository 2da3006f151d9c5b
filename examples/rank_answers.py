"""Rank the answers of each row by a reward model, and write the best and the worst as a pair.

python examples/rank_answers.py RUN ROWS OUTPUT

RUN is one of objective reward; ROWS has lines of {"prompt": ..., "answers": [...]}; OUTPUT is for format
preference.
"""

import json
import sys
from pathlib import Path

import finetune


def main(run: str, rows: str, output: str) -> None:
    model = finetune.load(run)
    with Path(rows).open() as file, Path(output).open("w") as pairs:
        for row in map(json.loads, file):
            rewards = [one[0] for one in model.score([(row["prompt"], answer) for answer in row["answers"]])]
            ranked = sorted(zip(rewards, row["answers"], strict=True), reverse=True)
            (most, chosen), (least, rejected) = ranked[0], ranked[-1]
            print(f"{most:8.3f} {least:8.3f}  {row['prompt']}")
            if most > least:
                pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
                pairs.write(json.dumps(pair | {"margin": most - least}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
