"""One epoch of DPO, as a process of its own; prints a line of JSON. bench_preference.py starts it.

    python benchmarks/preference_work.py --kind ours --base FOLDER --rows FILE --batch 4

Kinds: `ours`, and `trl`: TRL's DPOTrainer with peft's adapter (with --precompute its reference is computed
before training).
"""

import argparse
import json
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

LONGEST, RATE, BETA = 512, 1e-4, 0.1


class Clock(TrainerCallback):
    """When the first step began, and the losses."""

    def __init__(self) -> None:
        self.began = 0.0
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """After the callbacks that were added before."""
        self.began = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """The loss of a step."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def main() -> None:
    """Measure what the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=["ours", "trl"], required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--precompute", action="store_true")
    parser.add_argument("--prompts-twice", action="store_true")
    asked = parser.parse_args()
    pairs = len(asked.rows.read_text().splitlines()) // asked.batch * asked.batch
    clock = Clock()
    reference, trainer = (ours if asked.kind == "ours" else trl)(asked, clock, pairs // asked.batch)
    started = time.perf_counter()
    trainer.train()
    ended = time.perf_counter()
    # What is computed of the reference before the first step lies between the two, or before both.
    reference += clock.began - started
    found = {
        "pairs_per_second": pairs / (ended - clock.began + reference),
        "pairs_per_second_of_steps": pairs / (ended - clock.began),
        "reference_seconds": reference,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "losses": clock.losses,
    }
    print(json.dumps(found))


def ours(asked: argparse.Namespace, clock: Clock, steps: int) -> tuple[float, Any]:
    """Seconds of the reference up to now, and the trainer."""
    from finetune.cli.quiet import quiet_libraries
    from finetune.recipe.schema import Recipe
    from finetune.signals import Requests
    from finetune.training import build
    from finetune.training.callbacks.document_values import DocumentValues
    from finetune.training.inputs import build_inputs
    from finetune.training.reference import reference_model

    quiet_libraries()
    if asked.prompts_twice:
        build._shares_prompts = lambda *_: False
    recipe = Recipe.model_validate(
        {
            "model": {"base": str(asked.base)},
            "adapter": {"method": "lora", "rank": 16, "alpha": 32, "dropout": 0.0},
            "objective": {"kind": "dpo", "beta": BETA},
            "data": {
                "train": [{"path": str(asked.rows), "format": "preference"}],
                "max_length_tokens": LONGEST,
                "shuffle": False,
            },
            "train": {
                "max_steps": steps, "learning_rate": RATE, "schedule": "linear", "warmup_ratio": 0.0,
                "global_batch_size": asked.batch, "micro_batch_size": asked.batch,
                "precision": asked.precision, "save_every": None, "rehearsal": False,
            },
            "tracking": {"tracker": "none"},
        }
    )  # fmt: skip
    inputs = build_inputs(recipe)
    folder = Path(tempfile.mkdtemp())
    trainer = build.build_trainer(
        recipe,
        inputs,
        build.build_model(recipe, inputs),
        checkpoints=folder,
        evaluate_first=False,
        callbacks=[],
    )
    reference = partial(reference_model, trainer, partial(build.load_base, recipe, inputs))
    trainer.add_callback(DocumentValues(trainer, folder / "values.safetensors", reference, Requests()))
    trainer.add_callback(clock)
    return 0.0, trainer


def trl(asked: argparse.Namespace, clock: Clock, steps: int) -> tuple[float, Any]:
    """The same of TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    bf16 = asked.precision == "bf16"
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=asked.batch, max_steps=steps,
        logging_steps=1, report_to=[], use_cpu=True, bf16=bf16, max_length=LONGEST, learning_rate=RATE,
        lr_scheduler_type="linear", save_strategy="no", loss_type=["sigmoid"], beta=BETA, seed=0,
        gradient_checkpointing=False, precompute_ref_log_probs=asked.precompute, disable_tqdm=True,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32", "attn_implementation": "sdpa"},
    )  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
        for row in map(json.loads, asked.rows.read_text().splitlines())
    ]
    spent = [0.0]

    class Timed(DPOTrainer):
        """Which says how long its reference took before training."""

        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            started = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments)
            spent[0] += time.perf_counter() - started
            return found

    trainer = Timed(
        str(asked.base),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(asked.base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    return spent[0], trainer


if __name__ == "__main__":
    main()
