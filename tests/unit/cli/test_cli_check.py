"""finetune check, schema and what the command line makes of errors, each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli.app import VERBS
from finetune.cli.check import resolved_lines, yaml_value
from finetune.objectives import OBJECTIVES
from finetune.recipe.load import idle_defaults, load_recipe
from finetune.recipe.reading.tree import RecipeFile
from finetune.recipe.reading.yaml_tree import read_yaml
from finetune.recipe.reference import recipe_reference, recipe_schema
from finetune.recipe.shipped import recipes_folder, shipped_recipes
from tests.support.cli import run_process

ROOT = Path(__file__).resolve().parents[3]
GOOD = "model: {base: owner/name}\ndata: {train: [{generated: orders}]}\n"


def finetune(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    return run_process(*arguments, cwd=cwd, environment=environment, timeout=60)


def test_check_prints_every_value_with_its_origin(tmp_path: Path) -> None:
    """The output is YAML of the resolved recipe, each line with its origin, and ends in one sentence."""
    (tmp_path / "r.yaml").write_text(GOOD)
    done = finetune("check", "r.yaml", "train.seed=7", "model.new_tokens=['<a>', b]", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.split() == ["seed:", "7", "#", "command", "line"] for line in lines)
    assert any(line.split() == ["base:", "owner/name", "#", "r.yaml:1"] for line in lines)
    assert any(line.split() == ["rank:", "16", "#", "default"] for line in lines)
    assert lines[-1].startswith("# ok: r.yaml is valid; 4 values written, ")
    assert "\x1b" not in done.stdout
    assert any(line.split()[:3] == ["#", "decay_fraction:", "0.2"] for line in lines)
    everything = re.sub("^( +)# ", r"\1", done.stdout, flags=re.MULTILINE)
    tree, findings = read_yaml(everything.encode(), RecipeFile("out", tmp_path))
    assert tree is not None
    assert not findings
    as_json = json.loads(
        finetune(
            "check", "r.yaml", "train.seed=7", "model.new_tokens=['<a>', b]", "--json", cwd=tmp_path
        ).stdout
    )
    assert tree.plain() == as_json["recipe"]
    assert as_json["origins"]["train.seed"] == "command line"


FULL = """
model: {base: owner/name, revision: main, new_tokens: ["<a>", "b # c"], rope_scaling: {type: yarn, factor: 2}, pad_token: "é"}
adapter: {method: full}
data: {train: [{generated: orders}, {dataset: a/b, format: messages}], evaluation: {sources: [{generated: orders, seed: 3}]}}
train: {max_steps: 3, schedule: wsd, early_stopping: {}, evaluate_every: 2}
"""


@pytest.mark.parametrize("name", ["r.yaml", *shipped_recipes()])
def test_what_check_prints_is_a_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolved recipe that check prints is valid itself, and means the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(FULL)
    loaded = load_recipe(name)
    lines = resolved_lines(
        loaded.recipe.model_dump(mode="json"), loaded.origins, idle_defaults(loaded.recipe)
    )
    (tmp_path / "printed.yaml").write_text(
        "\n".join(f"{text}  # {origin}" if origin else text for text, origin in lines)
    )
    assert load_recipe("printed.yaml").recipe == loaded.recipe


def test_a_bad_recipe_exits_2_without_a_traceback(tmp_path: Path) -> None:
    """Every problem is on standard error, nothing on standard output, exit 2; as JSON they are on standard
    output."""
    (tmp_path / "r.yaml").write_text(GOOD + "train:\n  sed: 1\n  epochs: 0\n")
    done = finetune("check", "r.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: 2 problems in the recipe",
        "r.yaml:4:3  train.sed  unknown key; did you mean seed?",
        "r.yaml:5:11  train.epochs  got 0, expected more than 0",
    ]
    done = finetune("check", "r.yaml", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert [problem["path"] for problem in json.loads(done.stdout)["problems"]] == [
        "train.sed",
        "train.epochs",
    ]


def test_wrong_usage_exits_2(tmp_path: Path) -> None:
    """An unknown verb gets a guess, a missing argument is named; both exit 2 without a traceback."""
    unknown = finetune("chekc", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "Did you mean 'check'?" in unknown.stderr
    missing = finetune("check", cwd=tmp_path)
    assert missing.returncode == 2
    assert "Missing argument 'RECIPE'" in missing.stderr
    assert "Traceback" not in unknown.stderr + missing.stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    """A reader that goes away before the output ends leaves no message."""
    command = f"{sys.executable} -m finetune schema | head -c 1"
    done = subprocess.run(  # noqa: S602 - a fixed command that needs a shell's pipe
        command,
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("{", "")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise FinetuneError('no luck')", 2, "error: no luck"),
        ("raise CheckFailed('too far apart')", 3, "error: too far apart"),
        ("raise DataError('row 3')", 2, "error: row 3"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise Stopped", 75, ""),
        ("open('/dev/null/x', 'w')", 2, "error: /dev/null/x: Not a directory"),
        ("raise OSError('of no file')", 1, "this is a bug of finetune"),
        ("raise ZeroDivisionError('oh')", 1, "this is a bug of finetune"),
    ],
)
def test_errors_become_exit_codes(tmp_path: Path, body: str, code: int, words: str) -> None:
    """The user's errors are one message, a bug of ours a traceback, each with its exit code."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, types\nfrom data_prep.errors import DataError\nfrom finetune.cli import app\n"
        "from finetune.errors import CheckFailed, FinetuneError\nfrom finetune.signals import Stopped\n"
        f"def fail() -> None:\n    '''Fail.'''\n    {body}\n"
        "module = types.ModuleType('finetune.cli.fail')\nmodule.fail = "
        "fail\nsys.modules['finetune.cli.fail'] = module\n"
        "app.VERBS['fail'] = 'fail'\nsys.argv = ['finetune', 'fail']\napp.main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


def test_an_error_is_json_where_json_was_asked_for(tmp_path: Path) -> None:
    """With --json a failure of any verb is one JSON object on standard output, with its exit code."""
    done = finetune("inspect", "./absent", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    failure = json.loads(done.stdout)
    assert "absent" in failure["error"]
    assert failure["problems"] == []


def test_nothing_that_a_terminal_acts_on_is_printed(tmp_path: Path) -> None:
    """Names and values reach neither output with escape sequences, C1 controls or bidi overrides in them."""
    name = "\x1b[31mred\x9b2J\u202e.yaml"
    (tmp_path / name).write_text(GOOD)
    for arguments in (
        ("check", name),
        ("check", name, "--json"),
        ("check", f"{name}x"),
        ("runs", "list", name),
    ):
        done = finetune(*arguments, cwd=tmp_path)
        assert "red" in done.stdout + done.stderr
        assert not {"\x1b", "\x9b", "\u202e"} & set(done.stdout + done.stderr)


def test_an_ascii_locale_loses_no_line(tmp_path: Path) -> None:
    """What the terminal's encoding lacks is written as an escape, and the verb ends as ever."""
    (tmp_path / "é.yaml").write_text(GOOD)
    done = finetune("check", "é.yaml", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "# ok: \\xe9.yaml is valid" in done.stdout


@pytest.mark.parametrize(
    "override", [f"data.train.{'9' * 5000}.rows=3", f"train.seed={'9' * 5000}", "train.seed"]
)
def test_no_override_is_a_bug_of_ours(tmp_path: Path, override: str) -> None:
    """Whatever stands in an override, what is wrong with it is a problem of the command line."""
    (tmp_path / "r.yaml").write_text(GOOD)
    done = finetune("check", "r.yaml", override, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 problem in the recipe\ncommand line  ")


def test_a_prompt_that_is_no_text_is_one_message() -> None:
    """Bytes that aren't UTF-8 are refused before the model is looked for."""
    from finetune.cli.generate import read_prompts
    from finetune.errors import FinetuneError

    with pytest.raises(FinetuneError, match="--prompt is not valid text at character 2"):
        read_prompts(["a\udcff"], None)


def test_colour_only_where_it_is_wanted(tmp_path: Path) -> None:
    """Origins are pale where colour is forced, and NO_COLOR wins."""
    (tmp_path / "r.yaml").write_text(GOOD)
    assert "\x1b[2m# default\x1b[0m" in finetune("check", "r.yaml", cwd=tmp_path, FORCE_COLOR="1").stdout
    assert "\x1b" not in finetune("check", "r.yaml", cwd=tmp_path, FORCE_COLOR="1", NO_COLOR="1").stdout


@pytest.mark.parametrize(
    "text", ["a b", "1", "true", "", " a", "a: b", "a #b", "[x]", "2026-01-01", "\x1b[31m", "\u2028", '"', "é😀", "-x",
             "1e3", "~", "\n"]
)  # fmt: skip
def test_text_is_printed_as_yaml_reads_it(tmp_path: Path, text: str) -> None:
    """A text printed by check is printable, stands on one line, and YAML reads it as the same text."""
    printed = yaml_value([text])
    assert printed.isprintable()
    tree, findings = read_yaml(printed.encode(), RecipeFile("out", tmp_path))
    assert not findings
    assert tree is not None
    assert tree.plain() == [text]


def test_every_verb_of_the_table_has_its_command() -> None:
    """Every verb's module has a function of its name, or an app."""
    from importlib import import_module

    for name in VERBS.values():
        module = import_module(f"finetune.cli.{name}")
        assert hasattr(module, name) or hasattr(module, "app")


def test_the_shipped_schema_is_current() -> None:
    """recipes/recipe.schema.json is what `finetune schema` prints."""
    assert json.loads((recipes_folder() / "recipe.schema.json").read_text()) == recipe_schema()


def test_the_reference_of_keys_is_current() -> None:
    """docs/recipe_reference.md is what `finetune schema --markdown` prints, and has a row for every key of
    the schema."""
    page = (ROOT / "docs" / "recipe_reference.md").read_text()
    assert page == recipe_reference()
    sections = [recipe_schema()["$defs"][name]["properties"] for name in recipe_schema()["$defs"]]
    of_kinds = [objective.section.model_fields for objective in OBJECTIVES]
    keys = sum(map(len, [*sections, *of_kinds])) + 1  # one more: `extends`
    assert keys == len(re.findall(r"^\| `", page, re.M))


def test_every_property_of_the_schema_has_a_description() -> None:
    """An editor has words to show for each key, and may leave out what an extended recipe has."""
    schema = recipe_schema()
    assert schema["properties"]["extends"]["type"] == "string"
    for name, section in [("recipe", schema), *schema["$defs"].items()]:
        for key, knob in section["properties"].items():
            assert knob.get("description"), f"{name}.{key}"
    assert "required" not in schema
    assert schema["then"]["required"] == ["model", "data"]
