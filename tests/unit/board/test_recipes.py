"""Recipes on the board: begun, checked while they are written, saved."""

import html
import os
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from finetune.board.app import Board
from finetune.board.workspace import NAME
from finetune.recipe.load import load_recipe
from finetune.recipe.shipped import shipped_recipes

JSON = {"Accept": "application/json"}
HOSTILE = "</textarea><script>alert(1)</script>"


def text_in(page: str) -> str:
    """What the editor of a page holds, as a browser reads it."""
    found = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


def begun(user: TestClient, name: str = "mine", start: str = "") -> str:
    answer = user.post("/recipes", data={"name": name, "start": start})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_each_shipped_recipe_can_be_begun_with(name: str, user: TestClient, folder: Path) -> None:
    """The copy means what the shipped one means, wherever it is."""
    begun(user, start=name)
    copy, shipped = load_recipe(folder / "mine.yaml").recipe, load_recipe(name).recipe
    assert copy.model_dump(mode="json") == shipped.model_dump(mode="json")


def test_the_editor_holds_the_file_to_the_letter(user: TestClient, folder: Path) -> None:
    """Markup in it is text, and a first empty line and what looks like a secret stay."""
    content = f"\n# {HOSTILE} hf_abcdefghijklmnopqrstuvwxyzabcdefgh\nmodel:\n  base: x/y\n"
    (folder / "mine.yaml").write_text(content)
    page = user.get("/recipes/mine.yaml").text
    assert text_in(page) == content
    assert "<script>" not in page


def test_what_is_wrong_is_shown_where_it_is(user: TestClient) -> None:
    """A text that was not saved is checked as `finetune check` checks a file, by line and column."""
    rows = "data:\n  train:\n    - {path: nowhere.json, format: alpaca}\n"
    text = f"model:\n  base: x/y\n{rows}train:\n  learning_rat: 1\n"
    told = user.post("/check", data={"name": "new.yaml", "text": text}).json()
    assert [(one["line"], one["column"], one["path"]) for one in told["problems"]] == [
        (5, 14, "data.train.0.path"),
        (7, 3, "train.learning_rat"),
    ]
    assert told["summary"] == "2 problems"
    assert "did you mean learning_rate" in told["problems"][1]["message"]


def test_a_valid_text_is_said_to_be_so(user: TestClient) -> None:
    """With how much of it is written; what it extends counts."""
    told = user.post("/check", data={"name": "new.yaml", "text": "extends: quickstart\n"}).json()
    assert told == {"summary": told["summary"], "problems": []}
    assert told["summary"].startswith("valid: ")


def test_a_text_is_saved_by_its_mark(user: TestClient, folder: Path) -> None:
    """Line by line, with the file's own permissions."""
    address = begun(user)
    (folder / "mine.yaml").chmod(0o640)
    mark = re.search(r'name="mark" value="(\w+)"', user.get(address).text)
    assert mark is not None
    user.post(address, data={"text": "extends: quickstart\r\n", "mark": mark[1]})
    assert (folder / "mine.yaml").read_bytes() == b"extends: quickstart\n"
    assert (folder / "mine.yaml").stat().st_mode & 0o777 == 0o640


def test_a_second_tab_overwrites_nothing(user: TestClient, folder: Path) -> None:
    """Who has loaded an older text is told so, and the page keeps what was written."""
    address = begun(user)
    mark = re.search(r'name="mark" value="(\w+)"', user.get(address).text)
    assert mark is not None
    user.post(address, data={"text": "extends: quickstart\n", "mark": mark[1]})
    later = user.post(address, data={"text": "extends: smollm2/135m_lora\n", "mark": mark[1]})
    assert later.status_code == 409
    assert text_in(later.text) == "extends: smollm2/135m_lora\n"
    assert "was changed since this page has loaded it" in later.text
    assert (folder / "mine.yaml").read_text() == "extends: quickstart\n"


@pytest.mark.parametrize(
    "name", ["../out.yaml", "/etc/out.yaml", "mine.txt", "link.yaml"], ids=["above", "root", "suffix", "link"]
)
def test_no_file_elsewhere_is_read_or_written(
    name: str, user: TestClient, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nor one that is no recipe, nor through a link."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "out.yaml"
    elsewhere.write_text("secret: yes\n")
    (folder / "link.yaml").symlink_to(elsewhere)
    answers = [
        user.get(f"/recipes/{name.replace('/', '%2F')}"),
        user.post(f"/recipes/{name.replace('/', '%2F')}", data={"text": "x", "mark": ""}),
    ]
    assert all(answer.status_code in (400, 404) for answer in answers)
    assert "secret" not in "".join(answer.text for answer in answers)
    assert elsewhere.read_text() == "secret: yes\n"


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", "-x", "orders"], ids=["none", "up", "slash", "dash", "taken"]
)
def test_a_name_that_can_t_be_is_refused(name: str, user: TestClient, folder: Path) -> None:
    """With a message, and nothing is written."""
    (folder / "orders.yaml").write_text("extends: quickstart\n")
    before = sorted(folder.iterdir())
    assert user.post("/recipes", data={"name": name, "start": ""}).status_code == 400
    assert sorted(folder.iterdir()) == before


def test_recipes_are_found_and_other_files_are_not(user: TestClient, board: Board, folder: Path) -> None:
    """In folders below too; not those of runs, nor what is hidden."""
    for path, text in {
        "a.yaml": "extends: quickstart\n",
        "more/b.yml": "model: {base: x/y}\n",
        "compose.yaml": "services: {}\n",
        ".hidden/c.yaml": "extends: quickstart\n",
        "runs/x-001/recipe.lock.yaml": "recipe: {}\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    assert board.workspace.recipes() == ["a.yaml", "more/b.yml"]


def test_the_form_s_command_is_what_would_run(user: TestClient) -> None:
    """With its fields as words, quoted as a shell takes them."""
    begun(user)
    fields: dict[str, Any] = {
        "verb": "train", "about": "mine.yaml", "run": "mine-001", "launch": "ddp", "processes": "2",
        "overrides": "train.epochs=2 'output.name=a b'",
    }  # fmt: skip
    assert user.post("/command", data=fields).text == (
        "finetune train mine.yaml train.epochs=2 'output.name=a b' --run-folder runs/mine-001 --launch ddp "
        "--processes 2"
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("overrides", "--help", "is no override"),
        ("overrides", "train.epochs", "is no override"),
        ("overrides", "'x=1", "quotation mark"),
        ("processes", "two", "expected a whole number"),
        ("run", "../x", "expected letters"),
        ("overrides", "model.base=a\0b", "null character"),
    ],
    ids=["option", "no-value", "quote", "number", "run", "null"],
)
def test_a_field_that_can_t_be_is_refused(field: str, value: str, said: str, user: TestClient) -> None:
    """Before anything is started."""
    begun(user)
    fields = {"verb": "train", "about": "mine.yaml", "run": "mine-001", field: value}
    answer = user.post("/start", data=fields, headers=JSON)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True)


def test_a_text_that_could_not_be_opened_again_is_not_saved(user: TestClient, folder: Path) -> None:
    """A recipe has at most 1 MiB."""
    answer = user.post("/recipes/mine.yaml", data={"text": "#" * (2**20 + 1), "mark": ""}, headers=JSON)
    assert "1,048,577 bytes" in answer.json()["error"]
    assert list(folder.iterdir()) == []


def test_a_name_that_is_not_utf_8_costs_no_page(user: TestClient, folder: Path) -> None:
    """It is listed with the others."""
    Path(os.fsdecode(b"%s/\xff.yaml" % os.fsencode(folder))).write_text("extends: quickstart\n")
    assert "/recipes/%FF.yaml" in user.get("/").text


@pytest.mark.parametrize("stem", ["_mine", "m" * 200, "...", "a b"])
def test_the_proposed_run_s_name_is_one_that_is_taken(stem: str, user: TestClient, folder: Path) -> None:
    """Whatever the recipe is called."""
    (folder / f"{stem}.yaml").write_text("extends: quickstart\n")
    page = user.get(f"/recipes/{stem}.yaml").text
    proposed = re.search(r'name="run" value="([^"]+)"', page)
    assert proposed is not None
    assert NAME.fullmatch(proposed[1])


@pytest.mark.parametrize("caret", ["²", "9" * 5000, "-1"], ids=["no-digit", "long", "negative"])
def test_a_caret_that_is_nowhere_is_refused(caret: str, user: TestClient) -> None:
    """One message."""
    answer = user.post("/complete", data={"text": "mo", "caret": caret}, headers=JSON)
    assert "expected a place in the text" in answer.json()["error"]
