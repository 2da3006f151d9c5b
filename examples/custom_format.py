"""Rows of a form that no format reads, by a function of your own.

    python examples/custom_format.py [RECIPE] [KEY=VALUE ...]

The function's file is named by its SHA-256: code that comes with data runs only if allowed.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path

import finetune

CITIES = {"Paris": "France", "Rome": "Italy", "Oslo": "Norway"}
PARSE = """def parse(row):
    return {"prompt": f"Where is {row['city']}? ", "completion": f"In {row['country']}."}
"""


def main(recipe: str = "quickstart", *overrides: str, folder: str = "custom_format") -> None:
    here = Path(folder)
    here.mkdir(exist_ok=True)
    rows = [json.dumps({"city": city, "country": country}) for city, country in CITIES.items()]
    (here / "rows.jsonl").write_text("\n".join(rows))
    (here / "parse.py").write_text(PARSE)
    source = {"path": str(here / "rows.jsonl"), "format": "python", "code": str(here / "parse.py")}
    own = {"data.train": [source], "data.evaluation": None, "evaluate.metrics": []}
    loaded = finetune.load_recipe(finetune.load_recipe(recipe, own), overrides)
    allowed = [hashlib.sha256(PARSE.encode()).hexdigest()]
    for sample in finetune.audit(loaded, samples=3, allow_code=allowed).samples:
        print("".join(f"[{piece.text}]" if piece.weight else piece.text for piece in sample.pieces))
    print(finetune.train(loaded, allow_code=allowed))


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    main(*sys.argv[1:])
