"""A merged folder that says something else than was trained does not hold, when it is written and when it is
verified again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import CheckFailed
from finetune.exporters import Safetensors
from finetune.exporters.base import Description
from finetune.merging.merge import merge
from finetune.merging.verification.reverify import verify_again
from finetune.recipe.schema.model import ModelSection, RopeScaling
from finetune.runs.target import Target
from tests.support.adapters import TOKENS, make_adapter, merged_logits
from tests.support.models import CHATML, save_tiny_llama

Sabotage = Callable[[Path], None]
DATED = "{{ 'Today is ' + strftime_now('%d %B %Y') + '. ' }}" + CHATML


def edited(file: str, *path: str | int, to: Any) -> Sabotage:
    """Another value at a place in a JSON file."""

    def edit(folder: Path) -> None:
        values = place = json.loads((folder / file).read_text())
        for step in path[:-1]:
            place = place[step]
        assert place[path[-1]] != to
        place[path[-1]] = to
        (folder / file).write_text(json.dumps(values))

    return edit


def without(file: str, key: str) -> Sabotage:
    """A JSON file without one of its keys."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        del values[key]
        (folder / file).write_text(json.dumps(values))

    return edit


def replaced(file: str, old: str, new: str) -> Sabotage:
    """A text file in which something is otherwise."""

    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return edit


def removed(file: str) -> Sabotage:
    """A file less."""
    return lambda folder: (folder / file).unlink()


def swapped_words(folder: Path) -> None:
    """Two entries of the vocabulary have each other's ids; both stay as likely in a text as before."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    words = values["model"]["vocab"]
    one, other = (next(word for word, index in words.items() if index == wanted) for wanted in (200, 201))
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(values))


def last_added(key: str, value: Any) -> Sabotage:
    """A property of the token that was added last."""
    return edited("tokenizer.json", "added_tokens", -1, key, to=value)


def unpinned(folder: Path) -> None:
    """The template as the base has it, which asks for the day on which it is rendered."""
    (folder / "chat_template.jinja").write_text(DATED)


def last_decoded(key: str, value: Any) -> Sabotage:
    """The same where transformers looks for it."""

    def edit(folder: Path) -> None:
        last = max(
            json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"], key=int
        )
        edited("tokenizer_config.json", "added_tokens_decoder", last, key, to=value)(folder)

    return edit


def without_last_added(folder: Path) -> None:
    """The tokenizer of the base."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"].pop()
    path.write_text(json.dumps(values))


SABOTAGES: dict[str, tuple[Sabotage, str]] = {
    "rope factor": (edited("config.json", "rope_parameters", "factor", to=4.0), "rope_parameters"),
    "rope theta": (edited("config.json", "rope_parameters", "rope_theta", to=500.0), "rope_parameters"),
    "no rope parameters": (without("config.json", "rope_parameters"), ""),
    "rope theta of transformers "
    "4": (edited("config.json", "rope_theta", to=500.0), "rope_theta 500.0, which transformers 4"),
    "rope scaling of transformers "
    "4": (edited("config.json", "rope_scaling", to=None), "rope_scaling None, which transf"),
    "no rope theta of transformers "
    "4": (without("config.json", "rope_theta"), "rope_theta None, which transformers 4"),
    "another norm": (edited("config.json", "rms_norm_eps", to=1e-3), "rms_norm_eps 0.001"),
    "another activation": (edited("config.json", "hidden_act", to="gelu"), "hidden_act gelu"),
    "another end in the config": (edited("config.json", "eos_token_id", to=1), "eos_token_id 1"),
    "a config cut off": (replaced("config.json", "}", ""), "config.json can't be read"),
    "an added token less": (without_last_added, "tokenizer.json says otherwise of added_tokens"),
    "an added token stripped": (last_added("lstrip", True), "tokenizer.json says otherwise of added_tokens"),
    "an added token shown": (last_added("special", False), "tokenizer.json says otherwise of added_tokens"),
    "a token shown, to transformers": (last_decoded("special", False), "other added tokens are special"),
    "a token stripped, to transformers": (last_decoded("lstrip", True), "the tokenizer makes"),
    "added tokens normalised": (edited("tokenizer.json", "normalizer", to={"type": "Lowercase"}), "the tokenizer makes"),
    "two words swapped": (swapped_words, "the tokenizer makes|the vocabulary differs"),
    "a blank in front": (edited("tokenizer.json", "pre_tokenizer", "add_prefix_space", to=True), "the tokenizer makes"),
    "no vocabulary": (removed("tokenizer.json"), "tokenizer"),
    "another end token": (edited("tokenizer_config.json", "eos_token", to="<|endoftext|>"), "eos_token is"),
    "another pad token": (edited("tokenizer_config.json", "pad_token", to="<|endoftext|>"), "pad_token is"),
    "another template": (replaced("chat_template.jinja", "<|im_end|>\n", "<|im_end|>"), "the chat template writes"),
    "another header": (replaced("chat_template.jinja", "start|>assistant", "start|>model"), "the chat template writes"),
    "another date": (replaced("chat_template.jinja", "2024", "2025"), "the chat template writes '.*2025"),
    "today's date": (unpinned, "the chat template writes"),
    "no template": (removed("chat_template.jinja"), "the chat template fails"),
    "a broken template": (replaced("chat_template.jinja", "{% endfor %}", ""), "the chat template fails"),
    "no end of turn": (edited("generation_config.json", "eos_token_id", to=1), "ends an answer at 1, and not at"),
    "no generation config": (removed("generation_config.json"), "generation_config.json can't be read"),
}  # fmt: skip
"""What is done to a merged folder, and words of what is found."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """An adapter that brings tokens, trained with scaled positions and a template that writes a date."""
    base = tmp_path_factory.mktemp("base")
    save_tiny_llama(base)
    (base / "chat_template.jinja").write_text(DATED)
    count = len(load_tokenizer(base))
    rows = {name: [count, count + 1] for name in ("embed_tokens", "lm_head")}
    new = ("<part>", "<|part|>")
    made = make_adapter(
        base, tmp_path_factory.mktemp("adapter"), new_tokens=new, trainable_token_indices=rows
    )
    section = ModelSection(
        base=str(base), new_tokens=new, rope_scaling=RopeScaling(type="linear", factor=2.0)
    )
    return Target(section, made.adapter, None, "a test's adapter")


@pytest.fixture(scope="module")
def honest(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its merge."""
    folder = tmp_path_factory.mktemp("honest") / "merged"
    report = merge(target, folder)
    assert report.described
    return folder


def test_the_honest_folder_is_what_was_trained(target: Target, honest: Path) -> None:
    """Plain transformers and peft say so: the positions are scaled, the date is that of the training, the
    tokens are there."""
    found = verify_again(honest, seed=1)
    assert found.failures == []
    assert found.description is not None
    assert found.verification is not None
    base = AutoModelForCausalLM.from_pretrained(
        target.model.base, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    )
    base.resize_token_embeddings(base.config.vocab_size + 2)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(target.adapter)).eval()(TOKENS).logits
    torch.testing.assert_close(merged_logits(honest), expected, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(honest)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "Today is 26 July 2024. <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenize("a<|part|><part>b") == ["a", "<|part|>", "<part>", "b"]


@pytest.mark.parametrize("name", SABOTAGES)
def test_what_is_written_otherwise_fails(
    name: str, target: Target, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the merge's own check, and by `finetune verify` beside the hash of the file."""
    sabotage, words = SABOTAGES[name]
    copy = tmp_path / "copy"
    shutil.copytree(honest, copy)
    sabotage(copy)
    found = verify_again(copy, seed=1)
    assert len(found.changed) == 1
    assert found.description is not None
    assert any(re.search(words, failure) for failure in found.description.failures), (
        found.description.failures
    )

    write = Safetensors.describe

    def careless(self: Safetensors, description: Description, folder: Path) -> None:
        write(self, description, folder)
        sabotage(folder)

    monkeypatch.setattr(Safetensors, "describe", careless)
    with pytest.raises(CheckFailed, match="does not match base \\+ adapter"):
        merge(target, tmp_path / "merged", check="tensors")
    assert not (tmp_path / "merged").exists()
