"""Format python: a user's own file reads the rows, and runs only where its very content was allowed."""

import json
import subprocess
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.messages import Conversation, Message
from data_prep.preparation import PreparedData, prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.cli import run_process
from tests.support.models import save_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]
RAN = (
    "from pathlib import Path\nwith Path(__file__).with_name('ran').open('a') as file:\n    file.write('x')\n"
)
"""What leaves a mark each time the file is run."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, and a configuration without a model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(base)


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def section(folder: Path, code: str, rows: Sequence[Any], **options: Any) -> DataSection:
    """Rows and the code that reads them."""
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "own.py").write_text(code)
    source = {"path": str(folder / "rows.jsonl"), "format": "python", "code": str(folder / "own.py")}
    return DataSection.model_validate({"train": [source]} | options)


def prepared(
    folder: Path,
    code: str,
    rows: Sequence[Any],
    tokenizer: PreTrainedTokenizerFast,
    allowed: Collection[str] | None = None,
    **options: Any,
) -> PreparedData:
    """The rows as the code reads them, allowed unless the test says otherwise."""
    data = section(folder, code, rows, **options)
    return prepare(
        data, tokenizer, seed=0, allow_code=[digest(folder / "own.py")] if allowed is None else allowed
    )


def texts(data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(document.token_ids) for document in data.train]


def learned(data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What is learned of each document."""
    return [
        "|".join(tokenizer.decode(document.token_ids[first:end]) for first, end, _ in document.spans)
        for document in data.train
    ]


def test_code_is_refused_until_its_content_is_allowed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Without permission the file isn't run, and the message names it and its SHA-256; permission for another
    content or for its name is none, that for its content runs it, once."""
    code = f"{RAN}def parse(row):\n    return {{'text': row['a']}}\n"
    wanted = sha256(code.encode()).hexdigest()
    for allowed in (
        [],
        [sha256(b"other").hexdigest()],
        [str(tmp_path / "own.py"), "own.py", ""],
        [wanted[:-1]],
    ):
        with pytest.raises(DataError) as refused:
            prepared(tmp_path, code, [{"a": "blue"}], tokenizer, allowed)
        assert str(refused.value) == (
            f"format python would run {tmp_path / 'own.py'}. Read it; if you trust it, allow exactly this "
            f"content on the command line:\n  --allow-code {wanted}"
        )
    assert not (tmp_path / "ran").exists()
    data = prepared(
        tmp_path, code, [{"a": "blue"}, {"a": "lamp"}], tokenizer, [sha256(b"other").hexdigest(), wanted]
    )
    assert texts(data, tokenizer) == ["blue<|im_end|>", "lamp<|im_end|>"]
    assert (data.report.sources[0].format, (tmp_path / "ran").read_text()) == ("python", "x")


def test_changed_code_is_refused_again(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Permission holds for one content: a comment that is added takes it away, and with the old content it is
    back."""
    code = f"{RAN}def parse(row):\n    return {{'text': row['a']}}\n"
    allowed = [sha256(code.encode()).hexdigest()]
    assert len(prepared(tmp_path, code, [{"a": "blue"}], tokenizer, allowed).train) == 1
    changed = f"{code}# a comment\n"
    with pytest.raises(DataError, match=sha256(changed.encode()).hexdigest()):
        prepared(tmp_path, changed, [{"a": "blue"}], tokenizer, allowed)
    assert (tmp_path / "ran").read_text() == "x"
    assert len(prepared(tmp_path, code, [{"a": "blue"}], tokenizer, allowed).train) == 1


def test_every_source_with_code_needs_permission(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Permission for the code of one source is none for that of another, the evaluation's too, which runs
    first."""
    for name in ("train", "evaluation"):
        (tmp_path / name).mkdir()
    code = RAN + "def parse(row):\n    return {'text': row['a']}\n"
    train = section(tmp_path / "train", code, [{"a": "blue"}])
    held_out = section(tmp_path / "evaluation", f"# held out\n{code}", [{"a": "lamp"}])
    data = DataSection.model_validate({"train": train.train, "evaluation": {"sources": held_out.train}})
    digests = {name: digest(tmp_path / name / "own.py") for name in ("train", "evaluation")}
    for allowed, missing in (("train", "evaluation"), ("evaluation", "train")):
        with pytest.raises(DataError, match=f"--allow-code {digests[missing]}"):
            prepare(data, tokenizer, seed=0, allow_code=[digests[allowed]])
        assert not (tmp_path / missing / "ran").exists()
        (tmp_path / allowed / "ran").unlink(missing_ok=True)
    both = prepare(data, tokenizer, seed=0, allow_code=digests.values())
    assert (len(both.train), len(both.evaluation)) == (1, 1)


def test_prepared_data_run_no_code(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What comes from the cache runs no code, and needs its permission all the same; reading the rows again
    runs it once."""
    code = f"{RAN}def parse(row):\n    return {{'text': row['a']}}\n"
    data = section(tmp_path, code, [{"a": "blue"}, {"a": "lamp"}], evaluation={"fraction": 0.5})
    allowed = [digest(tmp_path / "own.py")]
    first = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache", allow_code=allowed)
    with pytest.raises(DataError, match=f"--allow-code {allowed[0]}"):
        prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    again = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache", allow_code=allowed)
    assert again.from_cache
    assert list(again.train) == list(first.train)
    assert (tmp_path / "ran").read_text() == "x"
    assert len(again.evaluation_examples) == 1
    assert (tmp_path / "ran").read_text() == "xx"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "has no function parse(row); it has no functions"),
        ("def pars(row):\n    return row\ndef _help(): ...\n", "has no function parse(row); it has pars"),
        ("parse = {'text': 'a'}\n", "has no function parse(row); it has no functions"),
        ("def parse(row:\n", "raised an error while it was run: SyntaxError: "),
        (
            "import no_such_module\n",
            "raised an error while it was run: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("raise ValueError('not today')\n", "raised an error while it was run: ValueError: not today"),
    ],
)
def test_code_that_can_not_be_used(
    code: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A file without a function parse, or that fails when it is run, is one message with the file's path."""
    with pytest.raises(DataError) as failed:
        prepared(tmp_path, code, [{"a": "b"}], tokenizer)
    assert str(failed.value).startswith(f"code {tmp_path / 'own.py'} {message}")


def test_code_runs_as_a_module_does(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file may use what a Python module can: postponed annotations, dataclasses, names of its own, its
    path."""
    code = (
        "from __future__ import annotations\n\nfrom dataclasses import dataclass\nfrom pathlib import "
        "Path\n\n"
        "@dataclass\nclass Word:\n    text: str\n\nNAME = Path(__file__).name\n\n"
        "def parse(row):\n    return {'text': f'{Word(row[\"a\"]).text} of {NAME}'}\n"
    )
    assert texts(prepared(tmp_path, code, [{"a": "blue"}], tokenizer), tokenizer) == [
        "blue of own.py<|im_end|>"
    ]


@pytest.mark.parametrize("code", ["raise SystemExit\n", "import sys\ndef parse(row):\n    sys.exit()\n"])
def test_code_that_exits(code: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file that exits ends the preparation with a message, not the process without one."""
    with pytest.raises(DataError, match="SystemExit"):
        prepared(tmp_path, code, [{"a": "blue"}], tokenizer)


def test_code_that_is_not_there(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file that can't be read is one message, with a cache and without."""
    data = section(tmp_path, "", [{"a": "b"}])
    (tmp_path / "own.py").unlink()
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match=r"^code .*own\.py can't be read: No such file or directory$"):
            prepare(data, tokenizer, seed=0, cache=cache)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return row['b']", "parse(row) raised KeyError: 'b'"),
        ("raise OSError('gone')", "parse(row) raised OSError: gone"),
        ("return parse(row)", "parse(row) raised RecursionError: "),
        ("return None", "parse(row) returned null; a row (an object) or a list of rows was expected"),
        ("return 'text'", "parse(row) returned a string; a row (an object) or a list of rows was expected"),
        ("return 3", "parse(row) returned a number; a row (an object) or a list of rows was expected"),
        (
            "yield {'text': 'a'}",
            "parse(row) returned a generator; a row (an object) or a list of rows was expected",
        ),
        (
            "return [{'text': 'a'}, 'b']",
            "parse(row) returned a string; a row (an object) or a list of rows was expected",
        ),
        (
            "return {}",
            "row 1 of parse(row) has no keys; expected 'messages', 'prompt' and 'completion', or 'text'",
        ),
        (
            "return [{'text': 'a'}, {'txt': 'b'}]",
            "row 2 of parse(row) has 'txt'; expected 'messages', 'prompt' and 'completion', or 'text'",
        ),
        ("return {'text': None}", "text is null; a string was expected"),
        ("return {'text': ' '}", "text is empty"),
        ("return {'text': '\\ud83d'}", "text holds half of a surrogate pair"),
        ("return {'prompt': 'a'}", "no column 'completion'; the row has 'prompt'"),
        ("return {'prompt': 'a', 'completion': 3}", "completion is a number; a string was expected"),
        ("return {'messages': 'a'}", "messages is a string; a list of messages was expected"),
        ("return {'messages': [{'role': 'user', 'content': 'a'}]}", "messages has no assistant turn"),
    ],
)
def test_what_parse_may_not_give(
    body: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Where parse raises, or gives anything but rows of a known form, the message has the row's place and
    what it gave."""
    code = f"def parse(row):\n    if row['a'] == 'good':\n        return {{'text': 'good'}}\n    {body}\n"
    if "yield" in body:
        code = f"def parse(row):\n    {body}\n"
    rows = [{"a": "bad"}] if "yield" in body else [{"a": "good"}, {"a": "bad"}]
    with pytest.raises(DataError) as failed:
        prepared(tmp_path, code, rows, tokenizer)
    assert str(failed.value).startswith(f"rows.jsonl:{len(rows)}, read as format 'python': {message}")


def test_rows_that_parse_refuses_can_be_skipped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With on_bad_row: skip a row that parse raises for is left out, counted and named, and the others are
    read."""
    code = "def parse(row):\n    return {'text': row['a']}\n"
    data = prepared(
        tmp_path, code, [{"a": "blue"}, {"b": "red"}, {"a": "lamp"}], tokenizer, on_bad_row="skip"
    )
    assert texts(data, tokenizer) == ["blue<|im_end|>", "lamp<|im_end|>"]
    dropped = data.report.sources[0].dropped["bad_row"]
    assert dropped.count == 1
    assert dropped.places[0].startswith(
        "rows.jsonl:2, read as format 'python': parse(row) raised KeyError: 'a'"
    )


def test_the_three_forms(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Parse may give a text, a prompt with its completion, or messages, each read as in the format of that
    form."""
    code = (
        "def parse(row):\n"
        "    if row['form'] == 'text':\n        return {'text': 'All of it.'}\n"
        "    if row['form'] == 'pair':\n        return {'prompt': 'The sky is', 'completion': ' blue.'}\n"
        "    turn = lambda role, content, **more: {'role': role, 'content': content} | more\n"
        "    talk = [turn('system', 'Be brief.'), turn('user', 'Hi.'), turn('assistant', 'No.', weight=0)]\n"
        "    talk += [turn('user', 'Hi!'), turn('assistant', 'Yes.', weight=0.5)]\n"
        "    if row['form'] == 'talk':\n        return {'messages': talk}\n"
        "    return {'prompt': talk[:2], 'completion': [turn('assistant', 'Well.')]}\n"
    )
    rows = [{"form": form} for form in ("text", "pair", "talk", "turns")]
    data = prepared(tmp_path, code, rows, tokenizer, supervise="assistant")
    assert texts(data, tokenizer)[:2] == ["All of it.<|im_end|>", "The sky is blue.<|im_end|>"]
    # Nothing predicts the first token of a text.
    assert "All of it.<|im_end|>".endswith(learned(data, tokenizer)[0])
    assert learned(data, tokenizer)[1:] == [" blue.<|im_end|>", "Yes.<|im_end|>", "Well.<|im_end|>"]
    assert {span[2] for span in data.train[2].spans} == {0.5}
    assert texts(data, tokenizer)[3].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi."
    )


def test_a_row_may_become_several_or_none(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A list of rows makes an example of each, with places of their own; an empty one makes none, and the row
    is counted."""
    code = "def parse(row):\n    return [{'text': word} for word in row['a'].split()]\n"
    data = prepared(tmp_path, code, [{"a": "blue lamp"}, {"a": ""}, {"a": "seven"}], tokenizer)
    assert texts(data, tokenizer) == ["blue<|im_end|>", "lamp<|im_end|>", "seven<|im_end|>"]
    assert [document.place for document in data.train] == ["rows.jsonl:1.1", "rows.jsonl:1.2", "rows.jsonl:3"]
    report = data.report.sources[0]
    assert (report.rows_read, report.examples_made, report.rows_kept) == (3, 3, 3)
    with pytest.raises(
        DataError, match=r"^data\.train leaves no rows:\n.*0 of 0 examples \(from 1 rows\) kept"
    ):
        prepared(tmp_path, code, [{"a": ""}], tokenizer)


def test_parse_sees_the_row_as_it_was_read(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Parse gets every column with its value, and what it does to its row reaches no other row and no
    report."""
    code = (
        "import json\nseen = []\n"
        "def parse(row):\n    text = json.dumps([sorted(row), row['deep'], row['none'], row['number']])\n"
        "    row.clear()\n    return {'text': text}\n"
    )
    row = {"deep": {"list": [1, "é"]}, "none": None, "number": 1.5}
    data = prepared(tmp_path, code, [row, row], tokenizer)
    wanted = json.dumps([sorted(row), row["deep"], None, 1.5])
    assert texts(data, tokenizer) == [f"{wanted}<|im_end|>"] * 2
    assert data.report.sources[0].unread_columns == {}


def test_examples_are_read_again_by_the_code(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The evaluation's examples are what the code made of the rows that are held out."""
    code = (
        "def parse(row):\n    return {'messages': [{'role': 'user', 'content': row['q']}, "
        "{'role': 'assistant', 'content': row['a']}]}\n"
    )
    rows = [{"q": f"What is {n}?", "a": f"It is {n}."} for n in range(10)]
    data = prepared(tmp_path, code, rows, tokenizer, evaluation={"fraction": 0.3})
    held_out = [int(document.place.split(":")[1]) - 1 for document in data.evaluation]
    assert data.evaluation_examples == [
        Conversation((Message("user", rows[n]["q"]), Message("assistant", rows[n]["a"]))) for n in held_out
    ]


# On the command line.


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Path:
    """A recipe whose rows are read by own.py, which leaves a mark where it runs."""
    section(tmp_path, f"{RAN}def parse(row):\n    return {{'text': row['a']}}\n", [{"a": "blue"}])
    source = {"path": "rows.jsonl", "format": "python", "code": "own.py"}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"model": {"base": str(base)}, "data": {"train": [source]}}))
    return path


def finetune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, with a cache of its own."""
    return run_process(*arguments, cwd=cwd, environment={"FINETUNE_CACHE": str(cwd / "cache")}, timeout=120)


@pytest.mark.parametrize("more", [[], ["--json"], ["--allow-code", "DIGEST"]])
def test_check_runs_no_code(more: list[str], recipe: Path, tiny_base: Path) -> None:
    """A check finds the recipe valid and runs no code, not even where it is allowed."""
    folder = recipe.parent
    more = [digest(folder / "own.py") if argument == "DIGEST" else argument for argument in more]
    done = finetune("check", recipe.name, f"model.base={tiny_base}", *more, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(folder / "own.py") in done.stdout
    assert not (folder / "ran").exists()


def test_check_looks_for_the_file(recipe: Path) -> None:
    """A check says where a code file was looked for that isn't there."""
    (recipe.parent / "own.py").unlink()
    done = finetune("check", recipe.name, cwd=recipe.parent)
    assert done.returncode == 2
    assert f"data.train.0.code  no such Python file: looked at {recipe.parent / 'own.py'}" in done.stderr


def test_the_command_line_gives_the_permission(recipe: Path) -> None:
    """Without --allow-code the command ends with the SHA-256 to allow and runs nothing; with it, the code
    runs."""
    folder = recipe.parent
    done = finetune("data", recipe.name, cwd=folder)
    assert (done.returncode, (folder / "ran").exists()) == (2, False)
    assert done.stderr.startswith(f"error: format python would run {folder / 'own.py'}.")
    assert done.stderr.splitlines()[-1] == f"  --allow-code {digest(folder / 'own.py')}"
    assert "Traceback" not in done.stderr
    done = finetune("data", recipe.name, *done.stderr.split()[-2:], cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rows.jsonl (train, python): 1 of 1 rows kept" in done.stdout
    assert (folder / "ran").read_text() == "x"


@pytest.mark.parametrize(
    "place", ["allow_code", "data.allow_code", "data.train.0.allow_code", "train.allow_code"]
)
def test_a_recipe_can_not_give_the_permission(place: str, recipe: Path) -> None:
    """Wherever a recipe, or an override of it, would allow code, that is an unknown key."""
    folder, allowed = recipe.parent, digest(recipe.parent / "own.py")
    done = finetune("check", recipe.name, f"{place}={allowed}", cwd=folder)
    assert done.returncode == 2
    assert f"command line  {place}  unknown key" in done.stderr
    values = json.loads(recipe.read_text())
    within = values
    *parents, last = place.split(".")
    for key in parents:
        within = within[int(key)] if isinstance(within, list) else within.setdefault(key, {})
    within[last] = [allowed]
    recipe.write_text(json.dumps(values))
    done = finetune("data", recipe.name, cwd=folder)
    assert done.returncode == 2
    assert f"{place}  unknown key" in done.stderr
    assert not (folder / "ran").exists()
