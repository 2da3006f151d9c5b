"""Some steps of GRPO, as a process of its own; prints a line of JSON. bench_grpo_time.py starts it.

    python benchmarks/grpo_work.py --kind ours --base FOLDER --rows FILE --reward FILE

Kinds: `ours`, and `trl`: TRL's GRPOTrainer with peft's adapter, drawing by transformers' own generation. A
step is --prompts prompts of --answers answers, learned in two micro-batches. --rows has {"prompt": messages,
"answer": text} in lines of JSON, --reward the function reward(prompt, answer, references) of both.
"""

import argparse
import hashlib
import json
import resource
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

RATE = 3e-4


class Clock(TrainerCallback):
    """When each step ended, in seconds and in the process's own, and what was logged."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self.moments.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step, its drawing among it."""
        self.moments.append((time.perf_counter(), time.process_time()))

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """What a step says."""
        self.logs.append(logs or {})


def main() -> None:
    """Measure what the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=["ours", "trl"], required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--reward", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4, help="of a step; an even number")
    parser.add_argument("--answers", type=int, default=8, help="to a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="the longest answer")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    asked = parser.parse_args()
    clock = Clock()
    trainer = (ours if asked.kind == "ours" else trl)(asked, clock)
    trainer.train()
    # The first step waits for what is made once.
    begun, ended = clock.moments[1 if asked.steps > 1 else 0], clock.moments[-1]
    seconds, of_process = (
        (after - before) / max(1, asked.steps - 1) for before, after in zip(begun, ended, strict=True)
    )
    found = {
        "seconds_a_step": seconds,
        "cpu_seconds_a_step": of_process,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if asked.kind == "ours":
        means = trainer.rollouts.means()
        found |= {"answer_tokens": means["answer_tokens"], "without_signal": means["groups_without_signal"]}
    else:
        lengths = [own["completions/mean_length"] for own in clock.logs if "completions/mean_length" in own]
        without = [own["frac_reward_zero_std"] for own in clock.logs if "frac_reward_zero_std" in own]
        found |= {"answer_tokens": statistics.mean(lengths), "without_signal": statistics.mean(without)}
    print(json.dumps(found))


def ours(asked: argparse.Namespace, clock: Clock) -> Any:
    """The trainer of a recipe."""
    from finetune.cli.quiet import quiet_libraries
    from finetune.recipe.rules.objective import with_objective_defaults
    from finetune.recipe.schema import Recipe
    from finetune.training import build
    from finetune.training.inputs import build_inputs

    quiet_libraries()
    recipe = with_objective_defaults(Recipe.model_validate({
        "model": {"base": str(asked.base)},
        "adapter": {"method": "lora", "rank": 16, "alpha": 32, "dropout": 0.0},
        "objective": {
            "kind": "grpo", "group_size": asked.answers, "max_new_tokens": asked.tokens,
            "rewards": {"own": {"kind": "python", "code": str(asked.reward)}},
        },
        "data": {
            "train": [{"path": str(asked.rows), "format": "prompt", "ignore_columns": ["answer"]}],
            "max_length_tokens": 256, "shuffle": False,
        },
        "train": {
            "max_steps": asked.steps, "learning_rate": RATE, "schedule": "constant",
            "global_batch_size": asked.prompts, "micro_batch_size": asked.prompts // 2,
            "precision": asked.precision, "save_every": None, "rehearsal": False,
        },
        "tracking": {"tracker": "none"},
    }))  # fmt: skip
    allowed = {hashlib.sha256(asked.reward.read_bytes()).hexdigest()}
    inputs = build_inputs(recipe, allow_code=allowed)
    return build.build_trainer(
        recipe, inputs, build.build_model(recipe, inputs), checkpoints=Path(tempfile.mkdtemp()),
        evaluate_first=False, callbacks=[clock],
    )  # fmt: skip


def trl(asked: argparse.Namespace, clock: Clock) -> Any:
    """The same of TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    bf16, reward = asked.precision == "bf16", runpy.run_path(str(asked.reward))["reward"]

    def rewards(prompts: list[Any], completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        """The function's, of each answer."""
        return [
            float(reward(turns[-1]["content"], said[0]["content"], [expected]))
            for turns, said, expected in zip(prompts, completions, answer, strict=True)
        ]

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=asked.prompts // 2 * asked.answers,
        gradient_accumulation_steps=2, num_generations=asked.answers, max_completion_length=asked.tokens,
        max_steps=asked.steps, learning_rate=RATE, lr_scheduler_type="constant", beta=0.0, temperature=1.0,
        loss_type="grpo", shuffle_dataset=False, logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, bf16=bf16, gradient_checkpointing=False, disable_tqdm=True, seed=0,
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32", "attn_implementation": "sdpa"},
    )  # fmt: skip
    return GRPOTrainer(
        str(asked.base),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list([json.loads(line) for line in asked.rows.read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(asked.base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )


if __name__ == "__main__":
    main()
