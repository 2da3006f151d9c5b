"""A SentencePiece tokenizer.model as a fast tokenizer: the same ids as SentencePiece itself, for models that
come without a tokenizer.json (LLaMA 1 and 2, Mistral, TinyLlama and their like).
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError, library_refusals
from data_prep.files import is_git_lfs_pointer
from data_prep.temporary import temporary_folder

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

MODEL = "tokenizer.model"
CONFIG = "tokenizer_config.json"
KEPT = (CONFIG, "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates")
"""Other files of a folder that belong to its tokenizer."""

UNIGRAM, BPE = 1, 2
CONTROL, USER_DEFINED = 3, 4
"""SentencePiece's kinds of model and of piece."""


@contextmanager
def converted_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder with the tokenizer files of `folder` and a tokenizer.json converted from its
    tokenizer.model. Raises DataError if that can't be read.
    """
    with temporary_folder("finetune-tokenizer-") as made:
        for name in KEPT:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, made / name)
            elif (folder / name).is_file():
                shutil.copyfile(folder / name, made / name)
        config = _read_json(folder / CONFIG)
        model = _read_model(folder / MODEL)
        special = _special_tokens(folder, config, model)
        with library_refusals(f"{folder / MODEL} can't be converted to a fast tokenizer"):
            tokenizer = _tokenizer(model, legacy=config.get("legacy", True) is not False)
        _add_tokens(tokenizer, model, folder, config)
        _add_ends(tokenizer, special, config)
        tokenizer.save(str(made / "tokenizer.json"))
        (made / CONFIG).write_text(json.dumps(special | config))
        yield made


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}; expected an object.")
    return found


def _read_model(path: Path) -> Any:
    """The model's protocol buffer. Raises DataError for a file of another type."""
    from transformers.utils import sentencepiece_model_pb2_new as proto

    if is_git_lfs_pointer(path):
        raise DataError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it again."
        )
    model = proto.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError, whose module depends on how protobuf was built
        raise DataError(f"{path} is not a SentencePiece model ({error}){_OTHER_KIND}") from None
    if not model.pieces or model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise DataError(f"{path} is not a SentencePiece model of type BPE or Unigram{_OTHER_KIND}")
    return model


def pieces_of(path: Path) -> list[str] | None:
    """The pieces of a SentencePiece model by id; None if there is none, or the file is of another type."""
    try:
        return [piece.piece for piece in _read_model(path).pieces] if path.is_file() else None
    except DataError:
        return None


_OTHER_KIND = (
    ": LLAMA 3's tokenizer.model is a tiktoken file, which can't be read; use the tokenizer.json of the same "
    "model."
)


def _tokenizer(model: Any, *, legacy: bool) -> "Tokenizer":
    """The model alone, without special tokens. `legacy`, SentencePiece's own way, begins each text with a
    blank if the model says so; otherwise only the first text before a special token does.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.convert_slow_tokenizer import generate_merges

    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unknown, spec = int(model.trainer_spec.unk_id), model.normalizer_spec
    bytes_too = bool(model.trainer_spec.byte_fallback)
    symbols = sorted(
        (piece.piece for piece in model.pieces if piece.type == USER_DEFINED), key=len, reverse=True
    )
    if model.trainer_spec.model_type == UNIGRAM:
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=bytes_too))
    else:
        vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
        merges = generate_merges(vocabulary, dict(pieces))
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary,
                merges,
                unk_token=pieces[unknown][0],
                fuse_unk=True,
                byte_fallback=bytes_too,
                ignore_merges=bool(symbols),  # so that a symbol, which is split off below, is its own piece
            )
        )
    steps: list[Any] = (
        [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    )
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and legacy:
        steps.append(normalizers.Prepend("▁"))
    cuts: list[Any] = []
    if legacy:
        steps.append(normalizers.Replace(" ", "▁"))
    else:
        scheme = "first" if spec.add_dummy_prefix else "never"
        cuts.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False))
    if symbols:
        # Not added tokens: a text after one of those would begin with a blank again.
        cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), behavior="isolated"))
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    decoding: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        decoding + [decoders.Strip(content=" ", left=1)] * bool(spec.add_dummy_prefix)
    )
    return tokenizer


def _special_tokens(folder: Path, config: dict[str, Any], model: Any) -> dict[str, str]:
    """BOS, EOS and UNK: the folder's, else the model's own."""
    own, spec = _read_json(folder / "special_tokens_map.json"), model.trainer_spec
    found = {}
    for name, index in (("bos_token", spec.bos_id), ("eos_token", spec.eos_id), ("unk_token", spec.unk_id)):
        named = config.get(name, own.get(name))
        text = named.get("content") if isinstance(named, dict) else named
        if isinstance(text, str):
            found[name] = text
        elif 0 <= index < len(model.pieces):
            found[name] = model.pieces[index].piece
    return found


def _add_tokens(tokenizer: "Tokenizer", model: Any, folder: Path, config: dict[str, Any]) -> None:
    """Add the control pieces and the added tokens. Raises DataError for ids that don't fit."""
    from tokenizers import AddedToken

    for piece in model.pieces:
        if piece.type == CONTROL:
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=True)])
    unknown = model.pieces[model.trainer_spec.unk_id].piece
    tokenizer.add_special_tokens([AddedToken(unknown, normalized=False, special=True)])
    for index, token in sorted(_added(folder, config).items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != index:
            raise DataError(
                f"{folder}: the added token {token.content!r} has the id {index}, but after {MODEL} it would "
                f"be {tokenizer.token_to_id(token.content)}: the two files don't belong together."
            )


def _added(folder: Path, config: dict[str, Any]) -> "dict[int, AddedToken]":
    """Id -> token, of added_tokens.json and of the configuration's added_tokens_decoder, which has more
    details."""
    from tokenizers import AddedToken

    try:
        found = {
            int(index): AddedToken(str(text), normalized=False, special=True)
            for text, index in _read_json(folder / "added_tokens.json").items()
        }
        for index, described in (config.get("added_tokens_decoder") or {}).items():
            options = {
                name: bool(described.get(name))
                for name in ("lstrip", "rstrip", "normalized", "single_word", "special")
            }
            found[int(index)] = AddedToken(str(described["content"]), **options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}: its added tokens can't be read ({type(error).__name__}: {error})."
        ) from None
    return found


def _add_ends(tokenizer: "Tokenizer", special: dict[str, str], config: dict[str, Any]) -> None:
    """Let the tokenizer add BOS before a text and EOS after it, as the configuration says; by default only
    BOS."""
    from tokenizers import processors

    asked = {"bos_token": config.get("add_bos_token", True), "eos_token": config.get("add_eos_token", False)}
    ends = {name: special[name] for name, wanted in asked.items() if wanted and name in special}
    if not ends:
        return
    single = " ".join(part for part in (ends.get("bos_token"), "$A", ends.get("eos_token")) if part)
    ids = [(text, tokenizer.token_to_id(text)) for text in ends.values()]
    if any(index is None for _, index in ids):
        return  # reported where the token is needed
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
