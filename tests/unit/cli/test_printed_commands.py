"""The commands that are printed work as they are printed: for every method, format and kind of base, whatever
a path holds."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from finetune.recipe.schema import Recipe
from finetune.runs.commands import shell_command
from finetune.runs.folder import RunFolder
from finetune.training import run
from tests.support.cli import run_here
from tests.support.messages import hearing

ODD = "my récipe (1) 'x' $HOME; & #"
"""A name that only a quoted command survives."""

PLAIN = {"The cat is called": " Tom, and he likes fish.", "The dog is called": " Max, and he likes bones."}
PARSE = 'def parse(row):\n    return {"prompt": row["prompt"], "completion": row["completion"]}\n'

Train = Callable[..., tuple[RunFolder, dict[str, str]]]


def as_a_shell_reads(line: str) -> list[str]:
    """The words of a command, parted by a shell."""
    printed = subprocess.run(
        ["bash", "-c", f"finetune() {{ printf '%s\\0' \"$@\"; }}; {line}"],
        capture_output=True,
        check=True,
        cwd="/",
    )
    return printed.stdout.decode().split("\0")[:-1]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[str, str]]:
    """call("finetune ...") runs a command as a shell would read it; what it printed."""

    def work(line: str) -> tuple[str, str]:
        done = run_here(monkeypatch, capsys, *as_a_shell_reads(line))
        assert done.code == 0, done.stderr
        return done.stdout, done.stderr

    return work


@pytest.fixture
def train(tiny_base: Path, tmp_path: Path, call: Callable[[str], tuple[str, str]]) -> Train:
    """train(source, method=..., template=...) trains in a folder of an odd name: the run, and the printed
    commands by name."""
    folder = tmp_path / ODD
    folder.mkdir()
    rows = [
        {"prompt": prompt, "completion": completion, "text": prompt + completion}
        for prompt, completion in PLAIN.items()
    ]
    rows = [row | {"label": "cat" if "cat" in row["prompt"] else "dog"} for row in rows] * 4

    def work(
        source: str, *, method: str = "lora", template: bool = True, head: bool = False
    ) -> tuple[RunFolder, dict[str, str]]:
        base = folder / "base"
        shutil.copytree(tiny_base, base)
        weights = load_file(base / "model.safetensors")
        # Tokens that differ in likelihood, so that an adapter of few steps decides which comes.
        save_file(
            {name: 6 * weight if weight.ndim == 2 else weight for name, weight in weights.items()},
            base / "model.safetensors",
            metadata={"format": "pt"},
        )
        # Which no answer follows, and no verb stumbles over.
        (base / "generation_config.json").write_text(
            '{"min_new_tokens": 30, "num_return_sequences": 2, "stop_strings": ["a"]}'
        )
        if not template:
            (base / "chat_template.jinja").unlink()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "parse.py").write_text(PARSE)
        recipe: dict[str, Any] = {
            "model": {"base": str(base)} | ({"head": {"labels": ["cat", "dog"]}} if head else {}),
            "adapter": {"method": method} | ({} if method == "full" else {"rank": 16}),
            "data": {
                "train": [json.loads(source)],
                "evaluation": {"sources": [json.loads(source)]},
                "clean": {"leakage": "keep"},
                "allow_findings": ["leakage"],
                "max_length_tokens": 128,
            },
            "train": {
                "precision": "fp32",
                "learning_rate": 1e-2,
                "max_steps": 40,
                "micro_batch_size": 4,
                "rehearsal": False,
            },
            "evaluate": {"max_new_tokens": 24},
            "tracking": {"tracker": "none"},
            "output": {"folder": str(folder)},
        }
        if head:
            recipe["evaluate"] = {"metrics": ["accuracy", "loss"]}
        path = folder / f"{ODD}.yaml"
        path.write_text(json.dumps(recipe))
        code = f" --allow-code {hashlib.sha256(PARSE.encode()).hexdigest()}" if "parse.py" in source else ""
        out, _ = call(f"{shell_command('train', path)}{code}")
        lines = [line.split(maxsplit=1) for line in out.splitlines() if " finetune " in f" {line}"]
        return RunFolder(folder / f"{ODD}-001"), {
            words[0]: words[1] for words in lines if words[1].startswith("finetune ")
        }

    return work


def source(**options: Any) -> str:
    return json.dumps({"path": "rows.jsonl", "columns": {}} | options)


@pytest.mark.parametrize(
    ("written", "method", "template"),
    [
        pytest.param(source(format="prompt_completion"), "lora", True, marks=pytest.mark.long),
        pytest.param(source(format="prompt_completion"), "full", False, marks=pytest.mark.long),
        (source(format="text"), "qlora", True),
        (
            source(
                format="template",
                template={"prompt": "{{ prompt }}", "completion": "{{ completion }}", "chat": False},
            ),
            "full",
            True,
        ),
        pytest.param(source(format="python", code="parse.py"), "lora", True, marks=pytest.mark.long),
    ],
)
def test_plain_texts_are_asked_plainly(
    train: Train, call: Callable[[str], tuple[str, str]], written: str, method: str, template: bool
) -> None:
    """The printed command continues a text as it was learned, also where the base has a chat template, and
    says so."""
    folder, commands = train(written, method=method, template=template)
    assert set(commands) == ({"generate"} if method == "full" else {"merge", "generate"})
    prompt = next(iter(PLAIN))
    asked = commands["generate"].replace('"..."', f'"{prompt}" --seed 1')
    out, err = call(asked)
    assert out.strip() == PLAIN[prompt].strip()
    assert ("asked plainly, as the run's rows are written" in err) is template
    if template:
        assert call(f"{asked} --chat")[0].strip() != PLAIN[prompt].strip()
    assert folder.read_summary()["asked"] == "plainly"
    if method != "full":
        assert "holds" in call(commands["merge"])[0]
        assert (folder.path / "merged" / "model.safetensors").is_file()


def test_conversations_are_asked_by_the_template(
    train: Train, call: Callable[[str], tuple[str, str]]
) -> None:
    """As generate, chat and samples ask."""
    chat = {"prompt": "{{ prompt }}", "completion": "{{ completion }}"}
    folder, commands = train(source(format="template", template=chat))
    prompt = next(iter(PLAIN))
    out, err = call(commands["generate"].replace('"..."', f'"{prompt}"'))
    assert out.strip() == PLAIN[prompt].strip()
    assert "plainly" not in err
    assert folder.read_summary()["asked"] == "by the chat template"


@pytest.mark.parametrize("template", [True, False])
def test_a_head_is_measured(train: Train, call: Callable[[str], tuple[str, str]], template: bool) -> None:
    """By the printed command, with the run's own recipe; it needs no chat template, neither does its
    merge."""
    folder, commands = train(
        source(format="classification", columns={"text": "prompt"}), head=True, template=template
    )
    assert set(commands) == {"merge", "evaluate"}
    out, _ = call(f"{commands['evaluate']} --json")
    report = json.loads(out)
    assert report["base"].startswith("the base of run")
    assert report["metrics"]["loss"]["value"] < report["metrics"]["loss"]["base"]["value"]
    assert "holds" in call(commands["merge"])[0]
    assert report["metrics"]["accuracy"]["value"] == folder.read_summary()["final/accuracy"] == 1.0
    out, _ = call(
        f"{shell_command('evaluate', folder.path / 'merged', folder.path.parent / f'{ODD}.yaml')} --json"
    )
    assert json.loads(out)["metrics"]["accuracy"]["value"] == 1.0
    kept = [json.loads(line) for line in (folder.predictions / "final.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in kept] == [row["references"][0] for row in kept] == ["cat", "dog"] * 4


def test_a_stopped_run_goes_on_by_what_it_says(
    train: Train, call: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    """The command that is printed after Ctrl-C resumes the run, code of the recipe included."""
    folder, _ = train(source(format="python", code="parse.py"))
    sha256 = hashlib.sha256(PARSE.encode()).hexdigest()
    values = folder.read_summary()["recipe"]
    values["train"]["max_steps"] = 6
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGINT)

    with hearing(say):
        run.start(Recipe.model_validate(values), name=ODD, command="test", allow_code=frozenset({sha256}))
    line = said[-1]
    assert line.startswith("stopped after step 3; resume with: finetune train --resume ")
    out, _ = call(line.partition("resume with: ")[2])
    assert "finished 6 steps" in out


@pytest.mark.long
def test_a_real_shell_runs_what_is_printed(train: Train) -> None:
    """One command as a person pastes it, with the installed program."""
    _, commands = train(source(format="prompt_completion"))
    prompt = next(iter(PLAIN))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = commands["generate"].replace("...", prompt)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert (done.returncode, done.stdout.strip()) == (0, PLAIN[prompt].strip())


@pytest.mark.parametrize(
    "name", ["-run", "~run", "a b", "it's", 'say "hi"', "é", "$(x)", "*", "plain", "new\nline"]
)
def test_a_path_is_one_word(name: str) -> None:
    """Of a command; it begins neither like an option nor like a home folder."""
    verb, path, option, value = as_a_shell_reads(shell_command("merge", Path(name), "--output", Path(name)))
    assert (verb, option) == ("merge", "--output")
    assert path == value == (f"./{name}" if name[0] in "-~" else name)
