"""What a run leaves for others: it says what was trained, to plain transformers and peft, and fails where it
does not."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import CheckFailed, ModelError
from finetune.hub.result import read_result
from finetune.merging.merge import merge
from finetune.merging.targets import choose_more
from finetune.recipe.lock import read_lock
from finetune.runs.folder import RunFolder
from finetune.runs.target import resolve_target
from finetune.training import outputs as result
from finetune.training import run as training
from finetune.training import session
from finetune.training.reproduce import results_of
from tests.support.models import CHATML, save_tiny_llama
from tests.support.processes import start
from tests.support.recipes import MakeRecipe

OTHER_WEIGHTS = "is not what run run-001 wrote: its SHA-256 was .* last checkpoint"
SHORT: dict[str, Any] = {
    "micro_batch_size": 4, "precision": "fp32", "learning_rate": 1e-2, "max_steps": 1, "rehearsal": False,
    "save_every": 1,
}  # fmt: skip
FULL = SHORT | {"learning_rate": 1e-3}
ASKED = [{"role": "user", "content": "hi"}]
NOW = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + CHATML
GIVEN = (
    "{% if date_string is not defined %}{% set date_string = '01 Jan 2020' %}{% endif %}{{ 'Today is ' + "
    "date_string + '. ' }}" + CHATML
)
GUARDED = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = '?' %}{% "
    "endif %}"
    "{{ 'Today is ' + day + '. ' }}" + CHATML
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of its own, whose tokenizer ends a text at another token than a turn."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_tiny_llama(folder, rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    path.write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.7}))
    return folder


def written(run: RunFolder) -> Path:
    return run.model if run.model.exists() else run.adapter


@pytest.mark.parametrize("scaling", [None, {"type": "yarn", "factor": 2.0}], ids=["", "yarn"])
def test_a_whole_model_and_its_checkpoints_say_what_was_trained(
    base: Path, make_recipe: MakeRecipe, scaling: dict[str, Any] | None
) -> None:
    """The end of turn that was trained, the positions in both spellings, use_cache as it was before."""
    model = {"base": str(base), "new_tokens": ["<|end|>"], "rope_scaling": scaling}
    run = start(make_recipe(model=model, adapter={"method": "full", "rank": 4}, train=FULL))
    for folder in (run.model, run.checkpoints / "checkpoint-1"):
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation == {"eos_token_id": [0, 2], "temperature": 0.7, "pad_token_id": 0}
        config = json.loads((folder / "config.json").read_text())
        assert (config["rope_theta"], config["use_cache"]) == (500000.0, True)
        if scaling is None:
            assert config["rope_scaling"] is None
            assert config["rope_parameters"] == {"rope_theta": 500000.0, "rope_type": "default"}
        else:
            assert config["rope_scaling"].items() >= {"rope_type": "yarn", "factor": 2.0}.items()
            assert config["rope_parameters"] == config["rope_scaling"] | {"rope_theta": 500000.0}
        assert (
            json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
            == "PreTrainedTokenizerFast"
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.tokenize("a<|end|>b") == ["a", "<|end|>", "b"]
        assert (
            config["vocab_size"]
            == len(tokenizer)
            == AutoModelForCausalLM.from_pretrained(folder).lm_head.out_features
        )


@pytest.mark.parametrize(
    ("template", "method", "date"),
    [
        (NOW, "lora", None),
        (NOW, "full", "24 Dec 2025"),
        (GIVEN, "full", None),
        (GIVEN, "lora", "soon"),
        (GUARDED, "lora", None),
    ],
    ids=["now", "now and a date", "given", "given and no date", "if"],
)
def test_a_template_keeps_the_date_that_it_was_trained_with(
    base: Path, make_recipe: MakeRecipe, template: str, method: str, date: str | None, tmp_path: Path
) -> None:
    """Plain transformers renders what was trained, in what the run and its merge leave; so do we, or another
    date."""
    (base / "chat_template.jinja").write_text(template)
    model = {"base": str(base)} | ({"date_string": date} if date else {})
    run = start(make_recipe(model=model, adapter={"method": method, "rank": 4}, train=FULL))
    day = date or "26 Jul 2024"
    assert f"note: the chat template writes a date. In what is saved it is {day}" in run.log_path.read_text()
    folders = [written(run)]
    if method == "lora":
        report = merge(resolve_target(str(run.path)), tmp_path / "merged", check="tensors")
        assert report.described
        folders.append(tmp_path / "merged")
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
        assert text == f"Today is {day}. <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert load_tokenizer(folder).chat_template == template
        assert load_tokenizer(folder).rendering.date_string == day
        assert load_tokenizer(folder, date_string="02 Feb 2022").rendering.date_string == "02 Feb 2022"


def other_weight(folder: Path) -> None:
    """One number of a tensor is another one."""
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    name = max(weights)
    weights[name].flatten()[0] += 1
    save_file(weights, path, metadata={"format": "pt"})


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    """Other values in a JSON file."""
    return lambda folder: (folder / file).write_text(
        json.dumps(json.loads((folder / file).read_text()) | changes)
    )  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("method", "sabotage", "words"),
    [
        ("lora", other_weight, "peft reads another"),
        ("lora", edit("adapter_config.json", lora_alpha=64), "peft scales the updates otherwise"),
        ("lora", edit("adapter_config.json", target_modules=["q_proj"]), "peft"),
        (
            "lora",
            lambda folder: (folder / "chat_template.jinja").write_text("{{ 'x' }}"),
            "the chat template writes",
        ),
        ("full", other_weight, "on the disk is not what was trained"),
        ("full", edit("config.json", rope_theta=1.0), "rope_theta 1.0, which transformers 4 goes by"),
        ("full", edit("config.json", tie_word_embeddings=True), "tie_word_embeddings"),
        ("full", edit("generation_config.json", eos_token_id=0), "ends an answer at 0"),
    ],
)
def test_a_result_that_is_not_what_was_trained_fails(
    method: str, sabotage: Callable[[Path], None], words: str, base: Path, make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It stands aside, under another name, and the run says which part is wrong."""
    honest = result.write_beside

    def careless(folder: Path, *arguments: Any) -> None:
        honest(folder, *arguments)
        sabotage(folder)

    monkeypatch.setattr(result, "write_beside", careless)
    recipe = make_recipe(model={"base": str(base)}, adapter={"method": method, "rank": 4}, train=FULL)
    with pytest.raises(CheckFailed, match=f"what was written is not what was trained: .*{words}"):
        start(recipe)
    run = RunFolder(Path(recipe.output.folder) / "run-001")
    assert not written(run).exists()
    assert run.path.joinpath("model.failed" if method == "full" else "adapter.failed").is_dir()


def test_an_adapter_with_more_than_updates_says_who_reads_it(base: Path, make_recipe: MakeRecipe) -> None:
    """New tokens: peft reads them, vLLM doesn't; the logits are those of plain peft on the plain base."""
    run = start(make_recipe(model={"base": str(base), "new_tokens": ["<|end|>"]}, train=SHORT))
    assert "holds rows of new tokens, which vLLM doesn't read from adapters" in run.log_path.read_text()
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(plain.config.vocab_size + 1)
    read = PeftModel.from_pretrained(plain, run.adapter).eval()
    merge(resolve_target(str(run.path)), run.path / "merged", check="tensors")
    merged, ids = AutoModelForCausalLM.from_pretrained(run.path / "merged"), torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, read(ids).logits, rtol=0, atol=1e-5)


def test_a_plain_adapter_has_no_such_note(base: Path, make_recipe: MakeRecipe) -> None:
    """Nor does one whose template writes no date."""
    log = start(make_recipe(model={"base": str(base)}, train=SHORT)).log_path.read_text()
    assert "vLLM" not in log
    assert "writes a date" not in log


def test_a_run_is_finished_last(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose card finds no room isn't finished; resumed, it has its card, and the lock its figures."""

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "README.md")

    recipe = make_recipe(train=SHORT)
    with monkeypatch.context() as here:
        here.setattr(session, "write_result_card", no_room)
        with pytest.raises(OSError, match="No space left"):
            start(recipe)
    folder = RunFolder(Path(recipe.output.folder) / "run-001")
    assert folder.outcome()["status"] == "failed"
    training.resume(folder.path, recipe=None)
    assert folder.finished
    assert "FOLDER_OF_THE_ADAPTER" in (folder.adapter / "README.md").read_text()
    assert "train_loss" in read_lock(folder.lock_path).final


@pytest.fixture
def flipped(make_recipe: MakeRecipe) -> RunFolder:
    """A run with another bit in its adapter than it wrote."""
    run = start(make_recipe(train=SHORT))
    path = run.adapter / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return run


def test_an_adapter_with_a_flipped_bit_is_refused(flipped: RunFolder, tmp_path: Path) -> None:
    """What a run wrote and something changed since is neither merged nor answers; its checkpoint is there."""
    with pytest.raises(ModelError, match=OTHER_WEIGHTS):
        merge(resolve_target(str(flipped.path)), tmp_path / "merged")
    merge(resolve_target(str(flipped.checkpoints / "checkpoint-1")), tmp_path / "merged", check="none")


def test_nothing_reads_an_adapter_with_a_flipped_bit(
    flipped: RunFolder, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """It is neither pushed nor merged beside another one, nor trained further or compared with a run that
    reproduces it; a copy outside the run, which its user may have changed, is pushed."""
    run = str(flipped.path)
    others: list[Callable[[], Any]] = [
        lambda: read_result(run),
        lambda: choose_more([run], None, resolve_target(run)),
        lambda: start(make_recipe(adapter={"continue_from": str(flipped.adapter)})),
        lambda: results_of(flipped),
    ]
    for read in others:
        with pytest.raises(ModelError, match=OTHER_WEIGHTS):
            read()
    copy = shutil.copytree(flipped.adapter, tmp_path / "copy")
    assert read_result(str(copy)).kind == "adapter"


def test_what_an_adapter_says_of_itself_has_one_order(make_recipe: MakeRecipe) -> None:
    """The modules are written in order, so that the same training gives the same file."""
    config = json.loads((start(make_recipe(train=SHORT)).adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
