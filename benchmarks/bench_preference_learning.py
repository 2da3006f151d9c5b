"""What minutes of training on preferences bring, with intervals, on generated rows.

    python benchmarks/bench_preference_learning.py               # five objectives, three seeds; the job
    python benchmarks/bench_preference_learning.py --kinds dpo --seeds 1
    python benchmarks/bench_preference_learning.py --real FILE   # and DPO on that file's pairs

learn: a prompt lists what has which colour and asks for one; the chosen answer is right, the rejected one
names another listed colour. Both answers are as long, so that "the longer one wins" scores one half.
SmolLM2-135M, LoRA of rank 16; the accuracy of rewards (of likelihoods for orpo and simpo) on 400 held-out
pairs, and how far it is above the untrained model's, row by row, with its 95 % interval.

job: answers in an asked format. A supervised run learns it from few rows, DPO goes on from there with near
misses as rejected answers; both are merged and score by exact match.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import finetune
from finetune.evaluation.bootstrap import Interval, interval_of
from finetune.evaluation.report import Score, difference

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("dpo", "orpo", "simpo", "kto", "reward")
COLOURS = ["red", "blue", "green", "black", "white", "brown", "pink", "gold"]
THINGS = ["lamp", "chair", "cup", "door", "coat", "boat", "bag", "hat"]
HELD_OUT = 400


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--pairs", type=int, default=320, help="to train on; of a reward model three times as many, twice"
    )
    parser.add_argument("--base", type=Path, help="a model folder in place of SmolLM2-135M")
    parser.add_argument("--real", type=Path, help="a file of pairs")
    parser.add_argument("--no-job", action="store_true")
    parser.add_argument("--supervised-epochs", type=int, default=1, help="of the job's 96 rows")
    asked = parser.parse_args()
    base = quickstart_base() if asked.base is None else str(asked.base)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in asked.kinds:
            # A head starts at random, and learns from nothing.
            pairs = asked.pairs * (3 if kind == "reward" else 1)
            for seed in range(asked.seeds):
                learn(kind, seed, pairs, base, folder)
        if asked.real is not None:
            real(asked.real, base, folder)
        if not asked.no_job:
            job(base, folder, asked.supervised_epochs)


def question(draw: random.Random) -> tuple[str, str, str]:
    """A prompt, the right colour and another one that it lists."""
    things, colours = draw.sample(THINGS, 3), draw.sample(COLOURS, 3)
    listed = ", ".join(f"{thing} {colour}" for thing, colour in zip(things, colours, strict=True))
    which = draw.randrange(3)
    other = draw.choice([index for index in range(3) if index != which])
    return f"{listed}. What colour is the {things[which]}?", colours[which], colours[other]


def pairs_of(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions with a right and a wrong answer."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        prompt, right, wrong = question(draw)
        rows.append({"prompt": prompt, "chosen": f"It is {right}.", "rejected": f"It is {wrong}."})
    return rows


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(
    kind: str, seed: int, train: Path, held_out: Path | None, base: Any, folder: Path, **changes: Any
) -> dict[str, Any]:
    """A recipe that learns from the pairs of one file and is measured on those of another."""
    recipe: dict[str, Any] = {
        "model": {"base": base} | ({"chat_template": "llama2"} if isinstance(base, str) else {}),
        "adapter": {"method": "lora", "rank": 16, "alpha": 32},
        "objective": {"kind": kind},
        "data": {
            "train": [{"path": str(train), "format": "preference"}],
            "evaluation": {"sources": [{"path": str(held_out), "format": "preference"}]},
            "max_length_tokens": 96,
        },
        "train": {
            "learning_rate": 5e-4 if kind == "reward" else 2e-4,
            "epochs": 2 if kind == "reward" else 1, "global_batch_size": 16,
            "micro_batch_size": 16, "seed": seed, "save_every": None, "evaluate_every": None,
            "rehearsal": False,
        },
        "tracking": {"tracker": "none"},
        "output": {"folder": str(folder / "runs")},
    }  # fmt: skip
    if held_out is None:
        del recipe["data"]["evaluation"]
    for section, values in changes.items():
        recipe[section] = recipe[section] | values
    return recipe


def file_of(recipe: dict[str, Any], name: str, folder: Path) -> Path:
    """The recipe as a file: JSON is YAML too."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def learn(kind: str, seed: int, count: int, base: Any, folder: Path) -> None:
    """One run beside the same one without training."""
    train = lines(folder / "train.jsonl", pairs_of(count, 1000 + seed))
    held_out = lines(folder / "held_out.jsonl", pairs_of(HELD_OUT, 7))
    started = time.perf_counter()
    recipe = file_of(recipe_of(kind, seed, train, held_out, base, folder), kind, folder)
    # Single judgements are measured as pairs: by log-ratios to the base.
    scored = "dpo" if kind == "kto" else kind
    measured_as = file_of(recipe_of(scored, seed, train, held_out, base, folder), scored, folder)
    run = finetune.train(recipe)
    minutes = (time.perf_counter() - started) / 60
    after = finetune.evaluate(run, measured_as).scores["reward_accuracy"]
    if scored == "dpo":  # every margin of the start is 0, a tie
        before, gain = 0.5, interval_of(after.value - 0.5, after.samples - 0.5)
    else:
        before, gain = above_start(recipe, measured_as, after)
    print(
        f"{kind:7} seed {seed}  {before:.3f} -> {after.value:.3f}  gain {gain.value:+.3f} "
        f"[{gain.low:+.3f}, {gain.high:+.3f}]  {'beyond' if gain.low > 0 else 'WITHIN'} its interval, "
        f"{minutes:.1f} minutes of training",
        flush=True,
    )


def above_start(recipe: Path, measured_as: Path, after: Score) -> tuple[float, Interval]:
    """The accuracy before training, of a run of one step that moves nothing, and the gain, row by row."""
    still = ["train.learning_rate=1e-30", "train.epochs=null", "train.max_steps=1"]
    before = finetune.evaluate(finetune.train(recipe, still), measured_as).scores["reward_accuracy"]
    gain = difference(before, after)
    assert gain is not None  # noqa: S101 - the same rows
    return before.value, gain


def real(path: Path, base: Any, folder: Path) -> None:
    """DPO on the pairs of a file, one of five held out."""
    recipe = recipe_of("dpo", 0, path, None, base, folder)
    recipe["data"] |= {"evaluation": {"fraction": 0.2}, "max_length_tokens": 512}
    recipe["train"] |= {"global_batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-4}
    run = finetune.train(file_of(recipe, "real", folder))
    report = finetune.evaluate(run)
    score = report.scores["reward_accuracy"]
    print(
        f"{path.name}: reward accuracy {score.value:.3f} [{score.interval.low:.3f}, "
        f"{score.interval.high:.3f}] on {score.rows} held-out pairs (0.5 untrained)",
        flush=True,
    )


def job(model: Any, folder: Path, epochs: int) -> None:
    """A supervised run, and DPO from there; both merged, by exact match of what they answer."""
    draw, rows, near = random.Random(3), list[dict[str, str]](), list[dict[str, str]]()
    for index in range(700):
        prompt, right, wrong = question(draw)
        thing = prompt.rsplit(" ", 1)[-1].rstrip("?")
        answer = f"{thing}={right};"
        if index < 96:
            rows.append({"prompt": prompt, "completion": answer})
        elif index < 500:
            miss = [f"{thing}={wrong};", f"{thing}: {right};", f"{right}={thing};", f"{thing}={right}"][
                index % 4
            ]
            near.append({"prompt": prompt, "chosen": answer, "rejected": miss})
        else:
            rows.append({"prompt": prompt, "completion": answer})
    supervised = lines(folder / "supervised.jsonl", rows[:96])
    held_out = lines(folder / "asked.jsonl", rows[96:])
    pairs = lines(folder / "near.jsonl", near)
    asked = {
        "data": {
            "train": [{"path": str(supervised), "format": "prompt_completion"}],
            "evaluation": {"sources": [{"path": str(held_out), "format": "prompt_completion"}]},
        },
        "evaluate": {"metrics": ["exact_match"], "max_new_tokens": 16},
    }
    base = recipe_of("supervised", 0, supervised, held_out, model, folder) | {"evaluate": asked["evaluate"]}
    base["data"] |= asked["data"]
    supervised_recipe = file_of(base, "supervised", folder)
    started = ["train.learning_rate=5e-4", f"train.epochs={epochs}", "evaluate.metrics=[]"]
    first = finetune.train(supervised_recipe, started)
    further = recipe_of("dpo", 0, pairs, None, model, folder, adapter={"continue_from": str(first.adapter)})
    further["objective"] = {"kind": "dpo", "supervised_weight": 0.2}
    second = finetune.train(file_of(further, "further", folder))
    found = []
    for name, run in (("supervised", first), ("supervised, then dpo", second)):
        merged = folder / name.replace(" ", "_").replace(",", "")
        finetune.merge(run.folder, merged, verify="none")
        score = finetune.evaluate(merged, supervised_recipe).scores["exact_match"]
        found.append(score)
        print(
            f"job: {name}, merged: exact match {score.value:.3f} [{score.interval.low:.3f}, "
            f"{score.interval.high:.3f}]",
            flush=True,
        )
    gain = difference(*found)
    assert gain is not None  # noqa: S101 - the same rows
    print(f"job: gain {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    if gain.low <= 0:
        sys.exit("DPO is not above the supervised run alone")


def quickstart_base() -> Any:
    """SmolLM2-135M, as the quickstart names it."""
    return finetune.load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe.model.model_dump(mode="json")[
        "base"
    ]


if __name__ == "__main__":
    main()
