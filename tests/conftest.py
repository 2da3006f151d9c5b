"""Shared parts of the tests: a tiny random LLaMA with a real byte-level tokenizer, and a small data set."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The key that signs checkpoints is the tests' own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="finetune-state-")
# And so is the database of its tracker, which Trackio looks for when it is imported.
os.environ["TRACKIO_DIR"] = str(Path(tempfile.mkdtemp(prefix="finetune-trackio-")) / "trackio")
# On matrices this small a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite that is started in the background of a script ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("FINETUNE_SHARED") or Path(__file__).resolve().parents[2] / "shared")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Please send two brass lamps to Ada before Friday.",
    "Der Himmel ist blau, 3 + 4 = 7; what is the capital of France?",
    '{"customer": "Ada", "product": "brass lamp", "quantity": 2}',
]


def save_tiny_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with ChatML turns, as transformers saves one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|im_end|>",  # noqa: S106
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def save_tiny_llama(folder: Path, **changes: object) -> None:
    """A random LLaMA (2 layers, width 64, 4 heads, 2 key-value heads, float32) and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tiny_tokenizer(folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    options: dict[str, object] = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(options | changes))).save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of tests go to a temporary cache; downloaded bases and tokenizers stay where they are."""
    kept = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune")
    cache = tmp_path_factory.mktemp("cache")
    for name in ("bases", "test-tokenizers"):
        (kept / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(kept / name)
    os.environ["FINETUNE_CACHE"] = str(cache)


@pytest.fixture
def hangup_heard() -> Iterator[None]:
    """SIGHUP is what it is in a terminal, also where the suite was started by nohup, which has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random LLaMA (untied head, float32) and its ChatML tokenizer. Never write to it."""
    folder = tmp_path_factory.mktemp("tiny-base")
    save_tiny_llama(folder)
    return folder


@pytest.fixture
def alpaca_file(tmp_path: Path) -> Path:
    """40 short alpaca rows of differing length."""
    rows = [
        {"instruction": f"Say {word} {i} times.", "input": "", "output": " ".join([word] * (i % 5 + 1))}
        for i, word in enumerate(["blue", "lamp", "seven", "Ada"] * 10)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path
