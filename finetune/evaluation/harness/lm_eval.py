"""The LM Evaluation Harness (lm-eval) as an optional dependency: installed or not, its view of a model,
output, errors."""

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data_prep.text import one_line
from finetune.errors import FinetuneError
from finetune.extras import refuse_without

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def check_installed() -> None:
    """Raises FinetuneError where lm-eval is not installed."""
    refuse_without("lm_eval", "a benchmark")


@contextlib.contextmanager
def task_errors(what: str, place: str = "", *, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a task's file, functions, data or prompts raise into a FinetuneError that begins with `what`.

    `passed` are let through; an error about memory becomes one that says so.
    """
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        from finetune.models.device import is_out_of_memory

        if is_out_of_memory(error):
            raise FinetuneError(f"out of memory: {one_line(str(error))}. Lower --batch-size.") from error
        if isinstance(error, passed):
            raise
        # An assertion often says nothing but the line that it stands in.
        text = str(error) or traceback.extract_tb(error.__traceback__)[-1].line or ""
        cause = f" ({one_line(str(error.__cause__))})" if error.__cause__ is not None else ""
        message = f"{what}: {type(error).__name__}: {one_line(text).rstrip('.')}{cause}."
        raise FinetuneError(f"{message} {place}".rstrip()) from error


class _Warnings(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self, texts: list[str]):
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """What lm-eval and the data libraries print goes nowhere while this lasts; lm-eval's warnings are
    collected."""
    texts: list[str] = []
    handler, logger = _Warnings(texts), logging.getLogger("lm_eval")
    others = {name: logging.getLogger(name).level for name in ("huggingface_hub", "datasets", "evaluate")}
    propagated, pooled = logger.propagate, os.environ.get("DISABLE_MULTIPROC")
    logger.addHandler(handler)
    logger.propagate = False
    for name in others:
        logging.getLogger(name).setLevel(logging.ERROR)
    # lm-eval would fork a process for every core, after torch has started its threads, for a bootstrap of a
    # second.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        for name, level in others.items():
            logging.getLogger(name).setLevel(level)
        if pooled is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = pooled


def harness_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", batch_size: int, chat: bool
) -> Any:
    """lm-eval's view of the model. With `chat`, prompts are those of training; answers end where those of
    training do."""
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    from data_prep.chat.chat_templates import rendering_of
    from data_prep.chat.rendering import end_of_turn_ids
    from finetune.generation.model import causal_model

    class OneBos(HFLM):
        """Rolling log-likelihoods put a BOS before each text as what it follows from; one of the text's own
        is not scored."""

        rolling = False

        def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
            ids: list[int] = super().tok_encode(string, *arguments, **options)
            return ids[1:] if self.rolling and ids[:1] == [self.prefix_token_id] else ids

        def loglikelihood_rolling(self, *arguments: Any, **options: Any) -> list[float]:
            self.rolling = True
            try:
                return super().loglikelihood_rolling(*arguments, **options)
            finally:
                self.rolling = False

    options: dict[str, Any] = {}
    if chat:
        rendering = rendering_of(tokenizer)
        if isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = rendering.pin(tokenizer.chat_template)
        # The template writes what begins a text.
        options = {"add_bos_token": False, "chat_template_args": {"date_string": rendering.date_string}}
    # transformers would take what a task doesn't name from the model's own file.
    causal_model(model).generation_config = GenerationConfig(eos_token_id=end_of_turn_ids(tokenizer))
    # HFLM ties head and embedding again: on a base whose two are one, that undoes an adapter's own embedding,
    # or fails.
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        return OneBos(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32", **options
        )
    finally:
        del vars(model)["tie_weights"]
