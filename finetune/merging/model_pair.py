"""A tuned model and the base that it was made from: two folders of full weights that differ in numbers
alone."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from data_prep.tokenizers.tokens import ids_of
from finetune.data import VOCABULARIES, tokenizer_for
from finetune.errors import MergeError, ModelError
from finetune.generation.loading import unchanged_base
from finetune.merging.inputs import FLOATS
from finetune.merging.verification.rows import TEXTS
from finetune.models.architectures.base import DECODER, EMBEDDING, LM_HEAD
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import Base, tokenizer_folder
from finetune.models.bases.shapes import Shape, check_weights, read_shape, stored_name
from finetune.models.description_check import OF_THE_READER
from finetune.models.safetensors import StoredWeights, hash_of
from finetune.models.stored_quantization import stored_quantization
from finetune.recipe.heads import classifies
from finetune.runs.target import Target, base_of, base_section, resolve_target

SIZES = ("model_type", "layers", "width", "feed_forward_width", "heads", "key_value_heads", "head_width")
NO_NUMBERS = OF_THE_READER | {
    "architectures", "vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "attention_dropout", "initializer_range",
}  # fmt: skip
"""Values of a configuration that change no number which a model with these weights computes. How many tokens
there are, and whether the head is the embedding, is seen in the weights."""


@dataclass(frozen=True)
class FullModel:
    """A folder of full weights."""

    target: Target
    base: Base
    config: PretrainedConfig
    weights: StoredWeights

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.base.folder

    @cached_property
    def shape(self) -> Shape:
        """Its sizes."""
        return read_shape(read_config(self.folder))

    def source(self, name: str) -> str | None:
        """Its own name of a parameter; a tied head is the embedding. None where it has no such parameter."""
        found = stored_name(self.weights.tensors, name)
        if found is None and name == f"{LM_HEAD}.weight":
            return stored_name(self.weights.tensors, f"{EMBEDDING}.weight")
        return found

    @property
    def ties_head(self) -> bool:
        """Whether its head is its embedding."""
        names = {self.source(f"{part}.weight") for part in (LM_HEAD, EMBEDDING)} - {None}
        if len(names) == 1:
            return True
        hashes = {hash_of(self.weights, name) for name in names if name is not None}
        return bool(self.config.tie_word_embeddings) and len(hashes) == 1

    @property
    def tokens(self) -> int:
        """Rows of its embedding."""
        name = self.source(f"{EMBEDDING}.weight")
        assert name is not None  # noqa: S101 - check_weights looked
        return self.weights.shape(name)[0]


@dataclass(frozen=True)
class ModelPair:
    """The two, alike in all but their numbers; the tuned one may have more tokens."""

    tuned: FullModel
    base: FullModel
    tokenizer: PreTrainedTokenizerFast
    """The tuned model's; the base's where it has none."""
    tokenizer_source: Path

    def names(self) -> list[str]:
        """Every parameter, by its full name, in the base's order; the head, tied or not, comes last."""
        head = f"{LM_HEAD}.weight"
        full = [
            name if name.startswith((f"{DECODER}.", f"{LM_HEAD}.")) else f"{DECODER}.{name}"
            for name in self.base.weights.names()
            if not name.endswith("rotary_emb.inv_freq")
        ]
        return [*(name for name in full if name != head), head]

    @property
    def kept_tokens(self) -> int:
        """Rows of the tuned embedding that are kept: those that the base has, and those of further tokens."""
        return max(self.base.tokens, min(self.tuned.tokens, len(self.tokenizer)))


def read_pair(text: str, base: str | Path | None) -> ModelPair:
    """What TUNED and --base name.

    Raises MergeError where they aren't two models of one shape, one configuration and one tokenizer (further
    tokens aside), and ModelError where one of them can't be read.
    """
    target = resolve_target(text)
    if target.adapter is not None:
        raise MergeError(
            f"{target.description} has an adapter already: expected full weights. Merge it first to extract "
            "another one from the merged model."
        )
    if base is not None:
        origin = Target(base_section(str(base)), None, None, f"the base {base}", named_in="--base")
    elif target.trained_from is not None:
        origin = base_of(target)
    else:
        raise MergeError(
            f"{target.description} does not say what it was made from: name its base with --base."
        )
    tuned, original = _read(target), _read(origin)
    _refuse_other_sizes(tuned, original)
    _refuse_other_config(tuned, original)
    return ModelPair(tuned, original, *_common_tokenizer(tuned, original))


def _read(target: Target) -> FullModel:
    base = unchanged_base(target)
    config = read_config(base.folder)
    if classifies(config):
        raise MergeError(
            f"{base.folder} has a classification head, which is no difference to a base: expected a model "
            "that predicts tokens."
        )
    weights = StoredWeights.of_folder(base.folder)
    strange = next((name for name, held in weights.tensors.items() if held.dtype not in FLOATS), None)
    how = stored_quantization(config) or (strange and f"{strange} is {weights.tensors[strange].dtype}")
    if how:
        raise MergeError(
            f"{base.folder} is stored quantised ({how}): expected weights in {', '.join(FLOATS)}; "
            "dequantise it first."
        )
    check_weights(base.folder, config, predicts=True)
    return FullModel(target, base, load_config(base, target.model.rope_scaling), weights)


def _refuse_other_sizes(tuned: FullModel, base: FullModel) -> None:
    mine, its = tuned.shape, base.shape
    wrong = [
        f"{name} {getattr(mine, name)} and {getattr(its, name)}"
        for name in SIZES
        if getattr(mine, name) != getattr(its, name)
    ]
    if tuned.tokens < base.tokens:
        wrong.append(f"an embedding of {tuned.tokens:,} and {base.tokens:,} rows")
    if wrong:
        raise MergeError(
            f"{tuned.folder} and {base.folder} are of different shapes ({'; '.join(wrong)}): an adapter "
            "can't stand for the difference. Name the base that the model was made from."
        )


def _refuse_other_config(tuned: FullModel, base: FullModel) -> None:
    mine, its = tuned.config.to_dict(), base.config.to_dict()
    wrong = [
        f"{key} is {mine.get(key)!r} and {its.get(key)!r}"
        for key in sorted((mine.keys() | its.keys()) - NO_NUMBERS)
        if mine.get(key) != its.get(key)
    ]
    if wrong:
        raise MergeError(
            f"{tuned.folder} and {base.folder} compute differently ({'; '.join(wrong[:3])} in config.json), "
            "and an adapter holds weights alone: it would be another model on that base."
        )


def _common_tokenizer(tuned: FullModel, base: FullModel) -> tuple[PreTrainedTokenizerFast, Path]:
    whose = tuned.target.tokenizer
    folder = tuned.folder if whose is None else tokenizer_folder(whose)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        folder = base.folder
    found = tokenizer_for(whose or tuned.target.model, None, folder, preparation=tuned.target.preparation)
    if not any((base.folder / name).is_file() for name in VOCABULARIES):
        return found, folder
    known = tokenizer_for(base.target.model, None, base.folder)
    mine, its = found.get_vocab(), known.get_vocab()
    odd = next((token for token, index in its.items() if mine.get(token) != index), None)
    text = next((text for text in TEXTS if ids_of(text, found) != ids_of(text, known)), None)
    if odd is not None or text is not None:
        what = (
            f"the token {odd!r} is {its[odd]} in the base's and {mine.get(odd)} in the other"
            if odd is not None
            else f"they make other tokens of {text!r}"
        )
        raise MergeError(
            f"{folder} and {base.folder} have different tokenizers: {what}. A row of the embedding is then "
            "not one token's; expected the base's tokenizer, further tokens aside."
        )
    return found, folder


def refuse_unreadable_rows(pair: ModelPair) -> None:
    """Raises ModelError where the tokenizer has tokens for which the tuned model has no row."""
    if len(pair.tokenizer) > pair.tuned.tokens:
        raise ModelError(
            f"the tokenizer in {pair.tokenizer_source} has {len(pair.tokenizer):,} tokens, and the embedding "
            f"in {pair.tuned.folder} {pair.tuned.tokens:,} rows: one of the two is not the other's."
        )
