"""Commands by which other programs serve the same."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from finetune.exporters.gguf.exporter import FILE
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    make_adapter(tiny_base, tmp_path / "tuned", r=12)
    return tmp_path / "tuned"


def test_vllm_gets_the_base_its_adapters_and_their_template(
    finetune_here: FinetuneHere, tiny_base: Path, adapter: Path
) -> None:
    """With the least rank of vLLM's that holds them."""
    result = finetune_here("serve", f"a={adapter}", "--engine", "vllm", "--port", "9000")
    words = shlex.split(result.stdout)
    assert words[:3] == ["vllm", "serve", str(tiny_base)]
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert words[words.index("--lora-modules") + 1] == f"a={adapter}"
    assert (
        Path(words[words.index("--chat-template") + 1]).read_text()
        == (adapter / "chat_template.jinja").read_text()
    )
    assert words[words.index("--port") + 1] == "9000"


def test_a_whole_model_has_its_own_template(finetune_here: FinetuneHere, tiny_base: Path) -> None:
    """And its generation_config.json has no say, as it has none here."""
    words = shlex.split(finetune_here("serve", f"m={tiny_base}", "--engine", "vllm").stdout)
    assert words[words.index("--served-model-name") + 1] == "m"
    assert words[words.index("--generation-config") + 1] == "vllm"
    assert "--chat-template" not in words


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"modules_to_save": ["lm_head"]}, "it has modules that were trained whole"),
        ({"trainable_token_indices": [5]}, "it has rows of new tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "its layers have several ranks"),
    ],
)
def test_what_vllm_cannot_serve_is_merged_first(
    finetune_here: FinetuneHere, tiny_base: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    """Exit code 2, with the reason and the command."""
    make_adapter(tiny_base, tmp_path / "odd", **options)
    result = finetune_here("serve", "odd", "--engine", "vllm", code=2)
    assert f"vLLM can't serve odd: {reason}" in result.stderr
    assert f"finetune merge {tmp_path / 'odd'} --output FOLDER" in result.stderr


def test_templates_that_differ_are_refused(
    finetune_here: FinetuneHere, tiny_base: Path, adapter: Path
) -> None:
    """vLLM has one for all."""
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    result = finetune_here("serve", str(adapter), f"base={tiny_base}", "--engine", "vllm", code=2)
    assert "those of tuned, base differ" in result.stderr


def test_llama_cpp_gets_a_gguf_first(finetune_here: FinetuneHere, adapter: Path) -> None:
    """Which has the template in it; several models are refused."""
    lines = finetune_here("serve", str(adapter), "--engine", "llama.cpp").lines
    assert lines[0] == f"finetune export {adapter} --format gguf --output tuned-gguf"
    assert lines[1].startswith(f"llama-server --model tuned-gguf/{FILE} --alias tuned --jinja")
    result = finetune_here("serve", f"a={adapter}", f"b={adapter}", "--engine", "llama.cpp", code=2)
    assert "llama.cpp's server serves one model" in result.stderr


def test_a_base_that_was_named_is_named_again(
    finetune_here: FinetuneHere, tiny_base: Path, adapter: Path
) -> None:
    """In the export's command."""
    words = ("serve", str(adapter), "--base", str(tiny_base), "--engine", "llama.cpp")
    assert f"{adapter} --base {tiny_base} --format gguf" in finetune_here(*words).lines[0]


def test_limits_that_another_engine_does_not_have_are_refused(
    finetune_here: FinetuneHere, adapter: Path
) -> None:
    """Exit code 2, with the option."""
    result = finetune_here("serve", str(adapter), "--engine", "vllm", "--rows", "3", code=2)
    assert "--rows with --engine: vllm has limits of its own" in result.stderr


@pytest.mark.parametrize(("engine", "name"), [("vllm", "VLLM_API_KEY"), ("llama.cpp", "LLAMA_API_KEY")])
def test_other_machines_need_the_key_there_too(
    finetune_here: FinetuneHere, adapter: Path, monkeypatch: pytest.MonkeyPatch, engine: str, name: str
) -> None:
    """Without one it is refused; with one the command has it, and doesn't print it."""
    words = ("serve", str(adapter), "--engine", engine, "--host", "0.0.0.0")  # noqa: S104
    monkeypatch.delenv("FINETUNE_API_KEY", raising=False)
    assert "set FINETUNE_API_KEY" in finetune_here(*words, code=2).stderr
    monkeypatch.setenv("FINETUNE_API_KEY", "not-to-be-seen")
    result = finetune_here(*words)
    assert result.lines[-1].startswith(f'{name}="$FINETUNE_API_KEY" ')
    assert "not-to-be-seen" not in result.stdout


def test_an_engine_that_is_installed_is_run(
    finetune_here: FinetuneHere, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the words that were printed."""
    program, told = tmp_path / "bin" / "vllm", tmp_path / "told.json"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    # A test's own process must not become another one.
    monkeypatch.setattr(os, "execvp", lambda file, words: told.write_text(json.dumps(words)))
    printed = finetune_here("serve", str(tiny_base), "--engine", "vllm").stdout
    assert json.loads(told.read_text()) == shlex.split(printed)
