"""Writes tests/golden/preferences.safetensors: what TRL's trainers compute of preferences, step by step.

    .venv/bin/python tests/golden/make_preferences.py

TRL goes into a folder of its own, which is deleted at the end. Each objective trains a tiny random model for
five steps in float32, with an adapter whose B is random, so that margins pass 1 nat, and the base as the
reference: losses, rewards row by row in the first step, and the first step's gradient are kept.
tests/unit/training/test_preferences_golden.py trains the same here (tests/support/golden_preferences.py has
model, rows and numbers).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.16.0"
"""Of TRL, with the versions of constraints.txt beside it."""


def main() -> None:
    """Install TRL beside this environment, and run the trainers there."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*pip, f"trl=={VERSION}"], check=True)
        path = os.pathsep.join([folder, str(ROOT)])
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, __file__, "--inside"], check=True, env=environment)


def write() -> None:
    """Train with each, and write what was found."""
    import numpy as np
    from safetensors.numpy import save_file

    from tests.support.golden_preferences import BASE_TEMPLATE, CASES, PATH, save_start

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, adapter = save_start(folder, BASE_TEMPLATE)
        for case in CASES:
            for part, values in trained(case, base, adapter, folder / case.name).items():
                found[f"{case.name}/{part}"] = np.asarray(values, dtype=np.float32)
                print(case.name, part, found[f"{case.name}/{part}"].reshape(-1)[:5], flush=True)
    save_file(found, PATH, metadata={"trl": VERSION})


def trained(case: Any, base: Path, adapter: Path, output: Path) -> dict[str, Any]:
    """Losses of five steps, rewards and gradient of the first."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from tests.support.golden_preferences import BATCH, BETA, LORA, RATE, STEPS, gradient_of, rows_of

    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer_class, config_class, options = trainer_of(case.name)
    # One row per micro-batch gives each row's rewards; KTO's baseline is a micro-batch's, so it has one.
    micro = BATCH if case.name == "kto" else 1
    config = config_class(
        output_dir=str(output), per_device_train_batch_size=micro, gradient_accumulation_steps=BATCH // micro,
        max_steps=STEPS, logging_steps=1, report_to=[], use_cpu=True, bf16=False, learning_rate=RATE,
        lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, save_strategy="no", disable_tqdm=True,
        beta=case.options.get("beta", BETA), max_length=None, gradient_checkpointing=False,
        train_sampling_strategy="sequential", seed=0, **options,
    )  # fmt: skip
    said = (lambda role, text: text) if case.plain else (lambda role, text: [{"role": role, "content": text}])
    rows = []
    for row in rows_of(case.name):
        prompt = row["prompt"]
        if case.plain:  # rendered as the template renders it; these trainers add BOS and EOS
            prompt = f"Q: {prompt}\nA:"
        answers = {key: row[key] for key in ("chosen", "rejected", "completion") if key in row}
        spaced = {key: f" {text}" if case.plain else text for key, text in answers.items()}
        kept = {key: said("assistant", text) for key, text in spaced.items()}
        label = {"label": row["label"]} if "label" in row else {}
        rows.append({"prompt": said("user", prompt), **kept, **label})
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    set_peft_model_state_dict(trainer.model, load_file(adapter / "adapter_model.safetensors"))
    seen: dict[str, Any] = {}

    class First(TrainerCallback):
        """What the first step has."""

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if "gradient" in seen:
                return
            seen["gradient"] = gradient_of(trainer.model)
            metrics = getattr(trainer, "_metrics", None) or trainer._stored_metrics
            for kind in ("chosen", "rejected"):
                seen[f"rewards_{kind}"] = [float(value) for value in metrics["train"][f"rewards/{kind}"]]

    trainer.add_callback(First())
    trainer.train()
    return {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], **seen}


def trainer_of(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """TRL's trainer, its configuration, and what an objective of ours is called there."""
    from tests.support.golden_preferences import MARGIN, SMOOTHING

    if name in ("orpo", "simpo", "cpo"):
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        if name == "orpo":
            return ORPOTrainer, ORPOConfig, {}
        if name == "cpo":
            return CPOTrainer, CPOConfig, {"cpo_alpha": 1.0}
        return CPOTrainer, CPOConfig, {"loss_type": "simpo", "simpo_gamma": MARGIN, "cpo_alpha": 0.0}
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    if name == "kto":
        return KTOTrainer, KTOConfig, {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    losses = {"dpo": "sigmoid", "ipo": "ipo", "hinge": "hinge", "robust": "robust"}
    smoothing = {"label_smoothing": SMOOTHING} if name == "robust" else {}
    return DPOTrainer, DPOConfig, {"loss_type": [losses[name]], **smoothing}


if __name__ == "__main__":
    write() if "--inside" in sys.argv else main()
