"""What a base's generation_config.json asks for changes no answer, stops no model from loading, and is
said."""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.messages import Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.generation.base_options import NO_OPTIONS, unused_options
from finetune.generation.generate import conversation_ids, generate, stream
from finetune.models.bases.locate import resolve_base
from finetune.models.load import load_model
from finetune.recipe.schema.model import ModelSection
from tests.support.models import MEMORISED

A, END = 66, 2  # a letter that answers hold, and the end of turn
WATERMARK = {
    "greenlist_ratio": 0.25,
    "bias": 20.0,
    "hashing_key": 15485863,
    "seeding_scheme": "lefthash",
    "context_width": 1,
}

VALUES: dict[str, list[Any]] = {
    # How long.
    "max_length": [1, 5], "max_new_tokens": [1, 3], "min_length": [60, 200], "min_new_tokens": [24, 100],
    "max_time": [0.0, 1e-6], "early_stopping": [True, "never"], "stop_strings": ["a", ["a", "###"]],
    # How tokens are taken.
    "do_sample": [True], "num_beams": [2, 4], "num_beam_groups": [2], "diversity_penalty": [0.5], "penalty_alpha": [0.6],
    "use_mtp": [True], "dola_layers": ["low", [1]], "low_memory": [True], "num_return_sequences": [2, 3],
    "constraints": [[1]], "force_words_ids": [[[A]]], "temperature": [0.01, 5.0], "top_k": [1, 3], "top_p": [0.1, 0.5],
    "min_p": [0.9], "top_h": [0.4], "typical_p": [0.1], "epsilon_cutoff": [0.3], "eta_cutoff": [0.3],
    # What tokens are worth.
    "repetition_penalty": [1.9, 5.0], "encoder_repetition_penalty": [2.0, 0.1], "length_penalty": [2.0],
    "no_repeat_ngram_size": [1, 2], "encoder_no_repeat_ngram_size": [1], "bad_words_ids": [[[A]], [[END]]],
    "renormalize_logits": [True], "forced_bos_token_id": [A], "forced_eos_token_id": [A, [A, END]],
    "remove_invalid_values": [True], "exponential_decay_length_penalty": [[1, 50.0], [0, 1.5]], "suppress_tokens": [[A], [END]],
    "begin_suppress_tokens": [[A, 67, 68]], "sequence_bias": [[[[A], -100.0]], [[[END], 100.0]]], "token_healing": [True],
    "guidance_scale": [3.0], "watermarking_config": [WATERMARK],
    # What is remembered, compiled and given back.
    "use_cache": [False], "cache_implementation": ["static", "quantized", "no such cache"],
    "cache_config": [{"backend": "quanto"}],
    "max_cache_len": [4], "prefill_chunk_size": [2], "compile_config": [{"mode": "reduce-overhead"}], "disable_compile": [True],
    "continuous_batching_config": [{"num_blocks": 2}], "output_attentions": [True], "output_hidden_states": [True],
    "output_scores": [True], "output_logits": [True], "return_dict_in_generate": [True],
    # Whose tokens they are.
    "pad_token_id": [A, -1], "bos_token_id": [A], "eos_token_id": [A, [A, 67]], "decoder_start_token_id": [A],
    # Other models that help.
    "is_assistant": [True], "num_assistant_tokens": [3], "num_assistant_tokens_schedule": ["heuristic"],
    "assistant_confidence_threshold": [0.9], "prompt_lookup_num_tokens": [3], "max_matching_ngram_size": [2],
    "assistant_early_exit": [1], "assistant_lookbehind": [2], "target_lookbehind": [2], "assistant_ensemble_weight": [0.5],
    "speculation_type": ["mtp"],
    # Where the file comes from.
    "transformers_version": ["4.57.0"], "_from_model_config": [True, False],
}  # fmt: skip
"""For each key of transformers' GenerationConfig, values that would change answers, or stop it, wherever
there are some."""

FAULTY = {
    "temperature": "warm",
    "suppress_tokens": 5,
    "chat_format": "chatml",
    "logits_processor": [1],
    "max_new_tokens": -1,
}
"""Values of no such kind, and keys that transformers' has not."""

Asked = Callable[[Any], tuple[PreTrainedModel, PreTrainedTokenizerFast]]


@pytest.fixture
def asked(memorised: Path, tmp_path: Path) -> Asked:
    """asked(content): the memorised model with this generation_config.json, as every verb loads a base."""
    folder = tmp_path / "base"
    shutil.copytree(memorised, folder)

    def load(content: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "generation_config.json").write_text(text)
        model = load_model(resolve_base(ModelSection(base=str(folder))), dtype=torch.float32)
        return model.eval(), load_tokenizer(folder)

    return load


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int = 3
) -> dict[str, str]:
    prompts = [conversation_ids([Message("user", question)], tokenizer) for question in MEMORISED]
    found = generate(model, tokenizer, prompts, max_new_tokens=60, batch_size=batch_size)
    assert [answer.cut for answer in found] == [None] * len(prompts)
    return dict(zip(MEMORISED, (answer.text for answer in found), strict=True))


def test_every_key_of_transformers_is_tried() -> None:
    """A key that a later transformers adds has to be thought of here."""
    assert set(VALUES) == set(vars(GenerationConfig()))


@pytest.mark.parametrize("key", VALUES)
def test_no_key_changes_an_answer(asked: Asked, key: str) -> None:
    """A model that knows its answers by heart says them, whatever its own file asks for; what was not
    followed is said."""
    for value in VALUES[key]:
        model, tokenizer = asked({"_from_model_config": True, key: value})
        assert answers(model, tokenizer) == MEMORISED
        said = " ".join(unused_options(model, tokenizer))
        assert (f" {key} " in f" {said}") is (key not in NO_OPTIONS), said


def test_no_two_keys_together_change_an_answer(asked: Asked) -> None:
    """Forty pairs, and all that can stand beside each other, batched or one by one, and as it is streamed."""
    draw = random.Random(0)  # noqa: S311
    single = [(key, value) for key, values in VALUES.items() for value in values]
    for content in [dict(draw.sample(single, 2)) for _ in range(40)] + [dict(single), dict(reversed(single))]:
        model, tokenizer = asked(content)
        assert answers(model, tokenizer, batch_size=draw.choice([1, 2, 3])) == MEMORISED, content
    prompt = conversation_ids([Message("user", "Count.")], tokenizer)
    assert "".join(stream(model, tokenizer, prompt, max_new_tokens=60)) == MEMORISED["Count."]


@pytest.mark.parametrize("key", FAULTY)
def test_a_faulty_value_changes_no_answer(asked: Asked, key: str) -> None:
    """Neither does what transformers would refuse, or doesn't know."""
    model, tokenizer = asked({key: FAULTY[key]})
    assert answers(model, tokenizer) == MEMORISED
    assert f" {key} " in " ".join(unused_options(model, tokenizer))


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', "null", "\x00", '{"a": NaN}'])
def test_a_damaged_file_changes_no_answer(asked: Asked, content: str) -> None:
    """It is read to be spoken of, and nothing else."""
    model, tokenizer = asked(content)
    assert answers(model, tokenizer) == MEMORISED
    assert len(unused_options(model, tokenizer)) == 1


def test_what_changes_nothing_is_not_said(asked: Asked) -> None:
    """Usual values, other names of the tokenizer's own tokens, and a base without such a file."""
    model, tokenizer = asked(
        {"do_sample": False, "temperature": 1.0, "eos_token_id": [END], "pad_token_id": END, "top_k": None}
    )
    assert unused_options(model, tokenizer) == []
    (Path(model.name_or_path) / "generation_config.json").unlink()
    assert unused_options(model, tokenizer) == []


def test_drawn_answers_follow_our_options_alone(asked: Asked) -> None:
    """With a temperature, the file has no say either: the same draws as without it."""
    found = []
    for content in (
        {},
        {"top_k": 1, "top_p": 0.01, "min_p": 0.99, "temperature": 0.001, "repetition_penalty": 3.0},
    ):
        model, tokenizer = asked(content)
        prompts = [conversation_ids([Message("user", "Write.")], tokenizer)] * 4
        found.append(
            generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=4, temperature=3.0, seed=1)
        )
    assert found[0] == found[1]
    assert len({answer.text for answer in found[0]}) > 1


def test_every_verb_that_answers_says_it(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """generate, chat and evaluate answer as ever, and say what they didn't follow; the model keeps its own
    options."""
    from finetune.cli.chat import chat
    from finetune.cli.evaluate import evaluate
    from finetune.cli.generate import generate as generate_verb

    model, _ = asked({"min_new_tokens": 24, "num_return_sequences": 2})
    folder, sentence = (
        model.name_or_path,
        "generation_config.json asks for min_new_tokens 24, num_return_sequences 2",
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"instruction": q, "input": "", "output": a}) + "\n" for q, a in MEMORISED.items())
    )
    recipe = tmp_path / "recipe.yaml"
    source = f"{{path: {rows}, format: alpaca}}"
    recipe.write_text(
        f"model: {{base: {folder}}}\ndata: {{train: [{source}], evaluation: {{sources: [{source}]}}, clean: "
        f"{{leakage: keep}}, "
        "allow_findings: [leakage]}\nevaluate: {metrics: [exact_match], max_new_tokens: 60}\ntrain: "
        "{precision: fp32}\n"
    )
    evaluate(folder, str(recipe), as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["exact_match"]["value"] == 1.0
    assert sentence in report["notes"][0]
    generate_verb(folder, prompt=["Count."], max_new_tokens=60)
    printed = capsys.readouterr()
    assert printed.out == MEMORISED["Count."] + "\n"
    assert sentence in printed.err
    monkeypatch.setattr("sys.stdin", io.StringIO("Count.\n"))
    chat(folder, max_new_tokens=60)
    printed = capsys.readouterr()
    assert printed.out == MEMORISED["Count."] + "\n"
    assert sentence in printed.err
