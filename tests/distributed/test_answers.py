"""Processes that each hold a share of a model, and ask it for different answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.generation.generate import generate_ids
from tests.unit.generation.answers import enlarged

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="launches are shown on Linux only"),
]

PROMPTS = [list(range(5, 25)), list(range(40, 47)), list(range(60, 100)), list(range(110, 125))]
TOKENS = (5, 12)
"""Of each process's answers."""

SCRIPT = f"""
import json, sys
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.engines.group import this_group
from finetune.generation.generate import generate_ids
from tests.unit.generation.answers import enlarged

base, out = map(Path, sys.argv[1:])
group = this_group()
group.form()
model = enlarged(base)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
mine = [{PROMPTS[:1]}, {PROMPTS[1:]}][group.rank]
answers = generate_ids(
    model, load_tokenizer(base), mine, max_new_tokens={TOKENS}[group.rank], batch_size=2
)
(out / f"{{group.rank}}.json").write_text(json.dumps(answers))
group.leave()
"""


def test_each_process_gets_its_own_answers(tiny_base: Path, tmp_path: Path) -> None:
    """One has a prompt, the other three with longer answers: those of the whole model, and nobody waits."""
    script = tmp_path / "answers.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, str(script), str(tiny_base), str(tmp_path)], check=True, timeout=120)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    model, tokenizer = enlarged(tiny_base), load_tokenizer(tiny_base)
    for answers, prompts, tokens in zip(found, (PROMPTS[:1], PROMPTS[1:]), TOKENS, strict=True):
        assert answers == generate_ids(model, tokenizer, prompts, max_new_tokens=tokens, batch_size=2)
