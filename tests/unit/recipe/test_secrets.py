"""What is a secret, where it is taken out, and where a path stays."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.text import cut
from finetune.cli import app
from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.recipe.secrets import scrubbed, scrubbed_recipe, scrubbed_values

HUB = f"hf_{'a1' * 15}"
WEB = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{'S' * 43}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"/{HUB}", "/<token>"), (f"({HUB})", "(<token>)"), (f"sk-ant-api03-{'x' * 40}", "<token>"),
        (f"sk-proj-a-B_{'c1-' * 20}", "<token>"), (f"sk-or-v1-{'a1' * 32}", "<token>"), (f"AIza{'x' * 35}", "<token>"),
        (WEB, "<token>"), (f"Bearer {WEB}.", "Bearer <token>."), (f"x-{WEB}", "x-<token>"),
        (f"{'n' * 30}.{WEB}", f"{'n' * 30}.<token>"), ("eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiJ9"),
        ("/a/https:/u:p@h/x?k=1", "/a/https:/<user>@h/x?<query>"), ("C:/a@b?c=d", "C:/a@b?c=d"),
        ("https://u:p@h/x", "https://<user>@h/x"), ("git+https://t@h/x.git", "git+https://<user>@h/x.git"),
        ("postgres://u:pa/ss@h/db", "postgres://<user>@h/db"), ("a://u:p#w@h", "a://<user>@h"), ("https://u@v:p@h", "https://<user>@h"),
        ("http://h:8080/@name", "http://h:8080/@name"), ("https://h/@name/a", "https://h/@name/a"), ("http://h:80", "http://h:80"),
        ("http://a,http://u:p@b", "http://a,http://<user>@b"), ("1https://u:p@h", "1https://<user>@h"),
        ("https://h/a?b=1&c=2 d", "https://h/a?<query> d"), ("https://h/?http://k&token=1", "https://h/?<query>"),
        ("https://h/a?b", "https://h/a?b"), ("https://h/#a=b", "https://h/?<query>"), ("'https://h?a=b'", "'https://h?<query>'"),
        ("see a@b.example and x=y?z=1", "see a@b.example and x=y?z=1"), ("s3://bucket/key", "s3://bucket/key"),
    ],
)  # fmt: skip
def test_what_is_taken_out_of_a_text(text: str, expected: str) -> None:
    """Tokens of well-known kinds wherever they stand, users and passwords and queries of URLs; nothing of
    other texts."""
    assert scrubbed(text) == expected


def test_secrets_are_known_by_name_kind_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of secret variables, well-known tokens, and the keys in URLs; harmless text stays as it is."""
    secret = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", secret)
    text = (
        f"key {secret}, hf_{'a1' * 15}, https://me:pass@host/rows.jsonl?X-Amz-Signature=123&b=1 and "
        "https://host/a.b#c"
    )
    assert (
        scrubbed(text)
        == "key <WANDB_API_KEY>, <token>, https://<user>@host/rows.jsonl?<query> and https://host/a.b#c"
    )
    assert scrubbed('see "https://h/a?b=1" now') == 'see "https://h/a?<query>" now'
    monkeypatch.setenv("TOKENIZER_NAME", "tiny-llama-base")
    assert scrubbed("sk-parliament-debates-of-the-year-2024.json by tiny-llama-base") == (
        "sk-parliament-debates-of-the-year-2024.json by tiny-llama-base"
    )
    plain = "train.learning_rate=1e-4 /runs/a-001 sha256 0f3c, tokens: 12"
    assert scrubbed(plain) == plain


def test_values_of_secret_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """By the variable's name; a short value, one that names a file, and those of other variables are no
    secrets."""
    monkeypatch.setenv("MY_TOKEN", "plain words 1")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("TOKENS", "12345678")
    text = f"/plain words 1/abc {tmp_path} 12345678"
    assert scrubbed(text) == f"/<MY_TOKEN>/abc {tmp_path} 12345678"
    assert scrubbed_values({"plain words 1": ["plain words 1", ("/plain words 1",), 1, None]}) == {
        "plain words 1": ["<MY_TOKEN>", ["/<MY_TOKEN>"], 1, None]
    }


@pytest.mark.parametrize(
    "name",
    [
        "MYAPIKEY",
        "HF_TOKEN_2",
        "HF_TOKEN2",
        "SECRET_VALUE",
        "DB_PASS",
        "PGPASSWORD",
        "token_of_mine",
        "SSH_PASSPHRASE",
    ],
)
def test_a_secret_variable_has_its_word_anywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning, in the middle, numbered, or run together with what is before it."""
    monkeypatch.setenv(name, "quite secret 7")
    assert scrubbed("it is quite secret 7.") == f"it is <{name}>."


@pytest.mark.parametrize("names", [("A_TOKEN", "B_TOKEN"), ("B_TOKEN", "A_TOKEN")])
def test_a_secret_that_begins_another_leaves_nothing_of_it(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order the environment has them."""
    short, long = names
    for name in sorted(names):
        monkeypatch.setenv(name, "plain word" if name == short else "plain words and more")
    assert scrubbed("plain words and more, plain word") == f"<{long}>, <{short}>"


@pytest.mark.parametrize("most", range(12, 90, 7))
def test_no_part_of_a_secret_is_left_by_a_cut(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a text is cut, what stands there is the name of the secret, or nothing of it."""
    monkeypatch.setenv("MY_TOKEN", "quite-secret-" * 5)
    text = cut(f"one two three {'quite-secret-' * 5} {'and more ' * 40}", most)
    assert len(text) == most
    assert "one two three <MY_TOKEN> and more and more and more and more and more".startswith(text[:-1][:60])


@pytest.mark.parametrize("before", [0, 20, 40, 55, 590, 1980])
def test_no_part_of_a_secret_is_in_a_message(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long wrong value of a recipe is cut in its message, which is where a secret may stand."""
    monkeypatch.setenv("MY_TOKEN", "quite-secret-" * 5)
    (tmp_path / "r.yaml").write_text("{}")
    value = f"{'a' * before} {'quite-secret-' * 5} {'and more ' * 400}"
    monkeypatch.setattr(
        sys,
        "argv",
        ["finetune", "check", str(tmp_path / "r.yaml"), f"train.precision={value}", f"x.{value}=1"],
    )
    assert app.run() == 2
    said = capsys.readouterr().err
    assert "train.precision" in said
    assert "quite" not in said


def test_a_recipes_paths_stay_and_its_texts_are_scrubbed() -> None:
    """By what the schema says of each field, not by how the text begins."""
    path, text = f"/rows/{HUB}", f"/{HUB} and more"
    source = {"path": path, "format": "python", "code": path}
    recipe = Recipe.model_validate(
        {
            "model": {
                "base": {"gguf": path},
                "chat_template": path,
                "date_string": text,
                "new_tokens": [text],
            },
            "adapter": {"continue_from": path},
            "data": {
                "train": [
                    source,
                    {"path": path, "format": "template", "template": {"prompt": text, "completion": text}},
                ],
                "evaluation": {"sources": [source]},
            },
            "evaluate": {"labels": [text]},
            "tracking": {"notes": text, "tags": [text], "samples": {"prompts": [text]}},
            "output": {"folder": path},
        }
    )
    found = scrubbed_recipe(recipe.model_dump(mode="json"))
    kept = {"gguf", "chat_template", "continue_from", "path", "code", "folder"}

    def check(value: Any, name: str) -> int:
        if isinstance(value, dict):
            return sum(check(below, key) for key, below in value.items())
        if isinstance(value, list):
            return sum(check(below, name) for below in value)
        assert value == path if name in kept and value is not None else HUB not in str(value), name
        return name in kept and value == path

    assert check(found, "") == 9
    assert scrubbed_recipe(recipe.model_dump(mode="json")["model"], "model") == found["model"]
    base = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": path})})
    assert scrubbed_recipe(base.model_dump(mode="json"))["model"]["base"] == path


def test_a_lock_keeps_the_folder_of_its_base_and_no_other_text() -> None:
    """The command, the file that a value comes from and the name of a base that is no folder are texts."""
    recipe = Recipe.model_validate({"model": {"base": "a/b"}, "data": {"train": [{"generated": "orders"}]}})
    lock = Lock(
        recipe,
        f"/bin/finetune {HUB}",
        "",
        base={"kind": "folder", "name": f"/{HUB}"},
        origins={"a": f"/{HUB}:1"},
    )
    values = lock.without_secrets()
    assert (values["command"], values["base"]["name"], values["origins"]["a"]) == (
        "/bin/finetune <token>",
        f"/{HUB}",
        "/<token>:1",
    )
    hub = Lock(recipe, "", "", base={"kind": "wheel", "name": f"/{HUB}"}).without_secrets()
    assert hub["base"]["name"] == "/<token>"
    assert HUB not in json.dumps(hub)
