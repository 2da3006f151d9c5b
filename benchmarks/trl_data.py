"""TRL's preparation of alpaca rows: trl_data.py ROWS.json BASE MOST_TOKENS. Runs in TRL's own environment."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Print the seconds from the file to TRL's prepared data set as one line of JSON."""
    path, base, most_tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16")
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=True, max_length=most_tokens, report_to=[],
        max_steps=1, completion_only_loss=True, disable_tqdm=True,
    )  # fmt: skip
    preparation = SFTTrainer._prepare_dataset
    seconds = 0.0

    def timed(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        started = time.perf_counter()
        made = preparation(self, *arguments, **options)
        seconds += time.perf_counter() - started
        return made

    SFTTrainer._prepare_dataset = timed
    started = time.perf_counter()
    rows = [example(row) for row in json.loads(path.read_text())]
    data = Dataset.from_list(rows)
    reading = time.perf_counter() - started
    SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    print(json.dumps({"seconds": reading + seconds, "reading": reading, "rows": len(rows)}))


def example(row: dict[str, str]) -> dict[str, Any]:
    """An alpaca row as TRL takes conversations."""
    question = f"{row['instruction']}\n{row['input']}".strip()
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


if __name__ == "__main__":
    main()
