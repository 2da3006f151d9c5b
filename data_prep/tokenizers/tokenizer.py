"""Loading a tokenizer without importing torch, with the chat template, the date and the special tokens
set."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.chat.chat_templates import (
    DEFAULT_DATE,
    Rendering,
    adds_bos,
    read_template,
    template_name,
    templates_of,
    unpinned,
)
from data_prep.chat.rendering import render
from data_prep.config import PREPARATION
from data_prep.errors import DataError, library_refusals
from data_prep.files import is_git_lfs_pointer
from data_prep.messages import Message
from data_prep.text import shown
from data_prep.tokenizers.sentencepiece_model import MODEL, converted_folder
from data_prep.tokenizers.tokens import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL_TOKEN = re.compile(r"<\|.+\|>")


def load_tokenizer(
    folder: str | Path,
    *,
    chat_template: str | None = None,
    date_string: str | None = None,
    pad_token: str | None = None,
    new_tokens: Sequence[str] = (),
    preparation: int = PREPARATION,
) -> "PreTrainedTokenizerFast":
    """The fast tokenizer in a model's folder.

    `chat_template` replaces the tokenizer's own: a name of TEMPLATES, one of its named ones, a Jinja file, or
    the Jinja text itself; it writes one BOS if the tokenizer adds one to plain text. `date_string` is the
    date that a template gets, whether it reads `date_string` or calls `strftime_now`; if not given, the one
    that the template was saved with, else DEFAULT_DATE. The pad token is `pad_token`, else the tokenizer's
    own, else its end token. `new_tokens` are added to the vocabulary; those in the shape <|name|> count as
    special, so they are left out of decoded answers. `preparation` is the version of how rows become tokens.
    Raises DataError.
    """
    tokenizer = _load(Path(folder))
    if preparation > 2:
        _follow_add_bos_token(tokenizer, Path(folder))
    name = Rendering.template_name
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template, templates_of(tokenizer), preparation)
        name = template_name(chat_template)
    _add_tokens(tokenizer, new_tokens)
    check_ids(tokenizer)
    _set_pad_token(tokenizer, pad_token)
    saved_date = _unpin(tokenizer)
    tokenizer.rendering = Rendering(date_string or saved_date or DEFAULT_DATE, name, preparation)
    if chat_template is not None and adds_bos(tokenizer):
        _begin_with_bos(tokenizer)
    return tokenizer


def _unpin(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """Take the date out of templates that were saved with one, and return it: it is passed again at each
    rendering."""
    found = {name: unpinned(text) for name, text in templates_of(tokenizer).items()}
    dates = [date for _, date in found.values() if date is not None]
    if dates:
        texts = {name: text for name, (text, _) in found.items()}
        tokenizer.chat_template = (
            texts if isinstance(tokenizer.chat_template, dict) else next(iter(texts.values()))
        )
    return dates[0] if dates else None


def _begin_with_bos(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Make a template that writes no BOS begin with it, and so the template that is saved with the model."""
    try:
        text = render([Message("user", "x"), Message("assistant", "y")], tokenizer)
    except DataError:  # reported for the first row, with its place
        return
    if not text.startswith(tokenizer.bos_token):
        tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)


def _load(folder: Path) -> "PreTrainedTokenizerFast":
    if (folder / "tokenizer.json").is_file():
        if is_git_lfs_pointer(folder / "tokenizer.json"):
            raise DataError(
                f"{folder / 'tokenizer.json'} is a Git LFS pointer: run `git lfs pull`, or download it again."
            )
        return _read(folder, folder)
    if not (folder / MODEL).is_file():
        raise DataError(
            f"{folder} has no tokenizer.json, and no {MODEL} to convert to one: copy the tokenizer's files "
            "there."
        )
    with converted_folder(folder) as made:
        return _read(made, folder)


def _read(made: Path, folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer in `made`, for the model in `folder`."""
    # AutoTokenizer would import torch, which costs seconds.
    from transformers import PreTrainedTokenizerFast

    with library_refusals(f"the tokenizer in {folder} can't be loaded"):
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            os.fspath(made), local_files_only=True
        )
    tokenizer.name_or_path = os.fspath(folder)
    _check_post_processor(tokenizer)
    if not isinstance(most := tokenizer.model_max_length, int | float) or isinstance(most, bool):
        raise DataError(
            f"{folder / 'tokenizer_config.json'}: model_max_length is {shown(most)}; expected a number."
        )
    return tokenizer


def _check_post_processor(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Raises DataError for a template that omits or repeats the text, which it would do even without special
    tokens."""
    processor = tokenizer.backend_tokenizer.post_processor
    state = {} if processor is None else json.loads(processor.__getstate__())
    for part in state.get("processors", [state]):
        texts = [piece["Sequence"]["id"] for piece in part.get("single", ()) if "Sequence" in piece]
        if part.get("type") == "TemplateProcessing" and texts != ["A"]:
            raise DataError(
                f"the tokenizer in {tokenizer.name_or_path} has a post_processor whose template for a single "
                f"text contains {' and '.join(texts) or 'no text'}; expected the text, A, once."
            )


def _follow_add_bos_token(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Make the tokenizer add the BOS, or not, as its own configuration says.

    transformers 4 and llama.cpp follow it; transformers 5 goes by tokenizer.json alone. What is saved with a
    model is the same in both places, so every reader does as in training.
    """
    path = folder / "tokenizer_config.json"
    asked = json.loads(path.read_text(encoding="utf-8")).get("add_bos_token") if path.is_file() else None
    if isinstance(asked, bool) and tokenizer.bos_token is not None and asked != adds_bos(tokenizer):
        tokenizer.add_bos_token = asked  # type: ignore[misc]  # its setter is hidden from mypy by another property


def _add_tokens(tokenizer: "PreTrainedTokenizerFast", new_tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=CONTROL_TOKEN.fullmatch(token) is not None)
            for token in new_tokens
        ]
    )


def _set_pad_token(tokenizer: "PreTrainedTokenizerFast", pad_token: str | None) -> None:
    if pad_token is not None:
        if tokenizer.backend_tokenizer.token_to_id(pad_token) is None:
            raise DataError(
                f"pad_token {pad_token!r} is not in the vocabulary; name one that is, or add it to "
                "model.new_tokens"
            )
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has neither a pad token nor an end token; set model.pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"the tokenizer in {tokenizer.name_or_path} has the pad token {shown(tokenizer.pad_token)}, "
            "which is not in its vocabulary; set model.pad_token to a token that is"
        )
