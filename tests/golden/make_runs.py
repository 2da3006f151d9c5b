"""Writes tests/golden/runs_07a25ae.tar.gz: what a user of commit 07a25ae has on disk. Later versions go on
with it.

    git worktree add /tmp/then 07a25ae && PYTHONPATH=/tmp/then .venv/bin/python tests/golden/make_runs.py

base/ (a random LLaMA, bf16, tied), rows/, cache/ (prepared data), runs/whole-001 (plain prompts, finished,
with its merge), runs/killed-001 (the same recipe, killed after step 8, its checkpoint of step 6: it must end
as whole-001), runs/chat-001 (conversations in packs, metrics measured, finished). Paths in it begin with the
word ROOT, for the folder it is unpacked to.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent / "runs_07a25ae.tar.gz"
ROOT = "/ROOT"

TRAIN = """
import os, signal, sys
from finetune.cli.quiet import quiet_libraries
quiet_libraries()
from finetune.recipe.schema import Recipe
from finetune.training import run
def say(line):
    print(line, flush=True)
    if sys.argv[2] == "killed" and "step 8/12" in line:
        os.kill(os.getpid(), signal.SIGKILL)
run.start(Recipe.model_validate_json(sys.argv[1]), name=sys.argv[2], command="finetune train " + sys.argv[2] + ".yaml", say=say)
"""

WORDS = ["blue", "lamp", "seven", "Ada", "brass", "Friday", "sky", "France"]


def write_base(folder: Path) -> None:
    """A random LLaMA of 2 layers and width 32, and a byte-level tokenizer with ChatML turns."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.support.models import save_tiny_tokenizer

    save_tiny_tokenizer(folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """Plain prompts, half of which end in a blank, and conversations."""
    folder.mkdir()
    plain = [
        {
            "prompt": f"Item {i}:{' ' * (i % 2)}",
            "completion": f"{' ' * (1 - i % 2)}{WORDS[i % 8]} {WORDS[(i + 3) % 8]}",
        }
        for i in range(24)
    ]
    chat = [
        {"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Say {WORDS[i % 8]} {i}."},
            {"role": "assistant", "content": f"{WORDS[i % 8]}, {WORDS[(i + 1) % 8]}"},
        ]}
        for i in range(24)
    ]  # fmt: skip
    for name, rows in (("plain", plain), ("chat", chat)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipes(root: Path) -> dict[str, dict[str, object]]:
    """The recipe of each run."""
    common: dict[str, object] = {
        "model": {"base": str(root / "base")},
        "adapter": {"rank": 2, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj", "down_proj"]},
        "tracking": {"tracker": "none"},
        "output": {"folder": str(root / "runs")},
    }
    train = {"micro_batch_size": 2, "global_batch_size": 4, "precision": "fp32", "learning_rate": 2e-2, "max_steps": 12,
             "log_every_steps": 1, "save_every_steps": 6, "keep_checkpoints": 1, "warmup_fraction": 0.2}  # fmt: skip
    plain = {"train": [{"path": str(root / "rows" / "plain.jsonl"), "format": "prompt_completion"}],
             "evaluation": {"fraction": 0.2}, "max_length_tokens": 64}  # fmt: skip
    chat = {"train": [{"path": str(root / "rows" / "chat.jsonl"), "format": "messages"}],
            "evaluation": {"fraction": 0.2}, "max_length_tokens": 64, "pack_length_tokens": 128}  # fmt: skip
    metrics = {"metrics": ["loss", "exact_match"], "max_new_tokens": 8}
    return {
        "whole": common | {"data": plain, "train": train},
        "killed": common | {"data": plain, "train": train},
        "chat": common
        | {"data": chat, "train": train | {"max_steps": 4, "micro_batch_size": 1}, "evaluate": metrics},
    }


def main() -> None:
    """Make everything in an empty folder, and pack it."""
    root = Path(tempfile.mkdtemp(prefix="golden-"))
    (root / "base").mkdir()
    write_base(root / "base")
    write_rows(root / "rows")
    environment = os.environ | {"FINETUNE_CACHE": str(root / "cache"), "XDG_STATE_HOME": str(root / "state"),
                                "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    for name, recipe in recipes(root).items():
        subprocess.run(
            [sys.executable, "-c", TRAIN, json.dumps(recipe), name], env=environment, check=name != "killed"
        )
    merge = [
        "merge",
        str(root / "runs" / "whole-001"),
        "--output",
        str(root / "runs" / "whole-001" / "merged"),
    ]
    subprocess.run([sys.executable, "-m", "finetune", *merge], env=environment, check=True)
    shutil.rmtree(root / "state", ignore_errors=True)
    for path in root.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        # A checkpoint's files are hashed; none of them is asked for a path.
        if str(root).encode() in content and "checkpoints" not in path.parts:
            path.write_bytes(content.replace(str(root).encode(), ROOT.encode()))
    with tarfile.open(OUTPUT, "w:gz") as archive:
        archive.add(root, arcname=".")
    shutil.rmtree(root)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
