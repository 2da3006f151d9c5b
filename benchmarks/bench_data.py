"""How fast rows become tokens and masks, beside TRL; from the cache; and a million rows in bounded memory.

    python benchmarks/bench_data.py                         # what needs nothing but this repository
    python benchmarks/bench_data.py --trl VENV --rows FILE  # beside TRL's preparation, in turns in one run
    python benchmarks/bench_data.py --million               # 1,000,000 generated rows, about 1 GB of JSONL

Each measurement is a process of its own; imports and the loading of the tokenizer and of TRL's model are left
out on both sides, reading the file is in on both. FILE is a JSON list of alpaca rows; they are taken ten
times over.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED_ROWS = ROOT.parent / "shared" / "data" / "instruct" / "lf_alpaca_en_demo.json"
MOST_TOKENS = 512


def main() -> None:
    """Measure what the arguments ask for, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl", type=Path, help="a virtual environment with TRL")
    parser.add_argument("--rows", type=Path, default=SHARED_ROWS, help="a JSON list of alpaca rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--million", action="store_true", help="also prepare 1,000,000 generated rows")
    parser.add_argument("--generated", type=int, default=1_000_000, help="how many rows --million makes")
    parser.add_argument(
        "--measure", help=argparse.SUPPRESS
    )  # one measurement, in the process that this one starts
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(
            json.dumps(
                measure(Path(asked.measure), Path(asked.base), Path(asked.cache) if asked.cache else None)
            )
        )
        return
    base = base_folder()
    with tempfile.TemporaryDirectory() as folder:
        compare(asked, base, Path(folder))
        if asked.million:
            million(asked.generated, base, Path(folder))


def base_folder() -> Path:
    """SmolLM2-135M, as the quickstart takes it."""
    from finetune.models.bases.locate import resolve_base
    from finetune.recipe.load import load_recipe

    return resolve_base(load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe.model).folder


def measure(rows: Path, base: Path, cache: Path | None) -> dict[str, Any]:
    """Seconds from the file to tokens and masks, documents, and the peak memory of this process."""
    from data_prep import load_tokenizer
    from data_prep.preparation import prepare

    tokenizer = load_tokenizer(base)
    one_row = rows.with_name("one-row.json")
    one_row.write_text(json.dumps([generated_row(random.Random(0))]))
    prepare(section_of(one_row), tokenizer, seed=0)  # loads what is loaded on first use
    section = section_of(rows)
    started = time.perf_counter()
    data = prepare(section, tokenizer, seed=0, cache=cache)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "rows": data.report.sources[0].rows_read,
        "tokens": int(data.train.lengths.sum()),
        "from_cache": data.from_cache,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def section_of(rows: Path) -> Any:
    """The data section with these rows."""
    from data_prep import DataSection

    source = {"path": str(rows), "format": "alpaca"}
    return DataSection.model_validate({"train": [source], "max_length_tokens": MOST_TOKENS})


def run(rows: Path, base: Path, cache: Path | None = None) -> dict[str, Any]:
    """measure() in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(rows), "--base", str(base)]
    return output_of([*command, "--cache", str(cache)] if cache else command, os.environ)


def run_trl(python: Path, rows: Path, base: Path) -> dict[str, Any]:
    """TRL's preparation of the same rows, in its own environment."""
    command = [
        str(python),
        str(Path(__file__).parent / "trl_data.py"),
        str(rows),
        str(base),
        str(MOST_TOKENS),
    ]
    return output_of(command, os.environ | {"HF_HUB_OFFLINE": "1"})


def output_of(command: list[str], environment: Any) -> dict[str, Any]:
    """The JSON object in the last line that a command prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(asked: argparse.Namespace, base: Path, folder: Path) -> None:
    """Ours and TRL's in turns, then ours from the cache."""
    rows = folder / "rows.json"
    if asked.rows.is_file():
        rows.write_text(json.dumps(json.loads(asked.rows.read_text()) * 10))
    else:
        rows.write_text(json.dumps([generated_row(random.Random(number)) for number in range(9990)]))
        print(f"{asked.rows} is not there: generated rows are taken")
    ours, theirs = [], []
    for _ in range(asked.rounds):
        ours.append(run(rows, base))
        if asked.trl:
            theirs.append(run_trl(asked.trl / "bin" / "python", rows, base))
    show("ours", ours)
    if theirs:
        show("TRL", theirs)
        ratio = statistics.median(x["seconds"] for x in theirs) / statistics.median(
            x["seconds"] for x in ours
        )
        print(f"{'ratio':<16} {ratio:.2f}")
    first, again = (run(rows, base, folder / "cache") for _ in range(2))
    print(f"{'into the cache':<16} {first['seconds']:.2f} s")
    print(
        f"{'from the cache':<16} {again['seconds']:.2f} s ({'really' if again['from_cache'] else 'NOT'} from "
        "the cache)"
    )


def show(name: str, found: list[dict[str, Any]]) -> None:
    """One line of the table: the median, and all measurements."""
    median = statistics.median(run["seconds"] for run in found)
    each = ", ".join(f"{run['seconds']:.2f}" for run in found)
    rows, tokens = found[0]["rows"], found[0].get("tokens")
    extra = f", {tokens:,} tokens" if tokens else ""
    print(f"{name:<16} {median:.2f} s for {rows:,} rows, {rows / median:,.0f} rows/s ({each}){extra}")


def million(count: int, base: Path, folder: Path) -> None:
    """Rows of about a kilobyte, written, prepared into a cache, and opened again."""
    rows = folder / "million.jsonl"
    words = random.Random(0)
    with rows.open("w") as file:
        for _ in range(count):
            file.write(json.dumps(generated_row(words)) + "\n")
    print(f"{'generated':<16} {count:,} rows, {rows.stat().st_size / 1e9:.2f} GB of JSONL")
    for name in ("prepared", "from the cache"):
        found = run(rows, base, folder / "cache")
        speed = f"{found['rows'] / found['seconds']:,.0f} rows/s"
        print(
            f"{name:<16} {found['seconds']:.1f} s, {speed}, peak memory {found['peak_bytes'] / 1e9:.2f} GB, "
            "one process"
        )


def generated_row(draw: random.Random) -> dict[str, str]:
    """An alpaca row of about a kilobyte, of words that a draw makes."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(100, 220)))
    cut = draw.randint(20, 200)
    return {"instruction": text[:cut], "input": "", "output": text[cut:]}


WORDS = [
    "".join(
        random.Random(number).choices("aeiou", k=1)
        + random.Random(number + 1).choices("bcdfglmnprst", k=n)
        + ["e"]
    )
    for number in range(3000)
    for n in (1, 2, 3)
]

if __name__ == "__main__":
    main()
