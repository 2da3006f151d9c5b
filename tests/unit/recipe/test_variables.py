"""${NAME} in a recipe's paths and names: the environment's value there, and nowhere else."""

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder, data in another one, and variables that name them."""
    for name in ("data", "base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("")
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "chat.jinja").write_text("")
    (tmp_path / "parent.yaml").write_text("train: {epochs: 2}\n")
    for name, value in {
        "HERE": str(tmp_path),
        "OWNER": "somebody",
        "WORD": "base",
        "EMPTY": "",
        "MY_TOKEN": "x",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_SUCH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_and_names(folder: Path) -> None:
    """Files, folders, names of bases and data sets, what is extended and where runs go; the origin says which
    variables."""
    (folder / "r.yaml").write_text("""\
extends: ${HERE}/parent.yaml
model: {base: "./${WORD}", chat_template: "${HERE}/chat.jinja"}
adapter: {continue_from: "${HERE}/adapter"}
data:
  train:
    - path: ${HERE}/data/rows.jsonl
      format: template
      template: {prompt: "${HERE} {{ a }}", completion: "{{ b }}"}
    - {dataset: "${OWNER}/set", format: text}
output: {folder: "${HERE}/${WORD}s"}
tracking: {tracker: wandb, notes: "${HERE}"}
""")
    loaded = load_recipe("r.yaml")
    recipe, (rows, hub) = loaded.recipe, loaded.recipe.data.train
    assert recipe.model.base == str(folder / "base")
    assert recipe.model.chat_template == str(folder / "chat.jinja")
    assert recipe.adapter.continue_from == str(folder / "adapter")
    assert (rows.path, hub.dataset) == (str(folder / "data" / "rows.jsonl"), "somebody/set")  # type: ignore[union-attr]
    assert recipe.output.folder == str(folder / "bases")
    assert recipe.train.epochs == 2
    # Never in what is learned or said.
    assert rows.template is not None  # type: ignore[union-attr]
    assert rows.template.prompt == "${HERE} {{ a }}"  # type: ignore[union-attr]
    assert recipe.tracking.notes == "${HERE}"
    assert loaded.origins["model.base"] == "r.yaml:2, ${WORD}"
    assert loaded.origins["output.folder"] == "r.yaml:10, ${HERE} ${WORD}"
    assert loaded.origins["data.train.1.format"] == "r.yaml:9"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${NO_SUCH}/x", "the environment variable NO_SUCH is not set"),
        ("${EMPTY}/x", "the environment variable EMPTY is empty"),
        ("${MY_TOKEN}/x", "${MY_TOKEN} may be a secret, which has no place in a recipe"),
        ("${my_api_key}", "${my_api_key} may be a secret"),
        ("${DB_PASSWORD}", "${DB_PASSWORD} may be a secret"),
        ("${CLIENT_SECRET}", "${CLIENT_SECRET} may be a secret"),
        ("${HERE:-/tmp}", "got ${HERE:-/tmp}, expected ${NAME}"),
        ("${}", "got ${}, expected ${NAME}"),
        ("${1}", "got ${1}, expected ${NAME}"),
        ("${HERE", "got ${HERE, expected ${NAME}"),
    ],
)
@pytest.mark.parametrize("key", ["base", "path", "extends"])
def test_what_is_no_variable(folder: Path, text: str, problem: str, key: str) -> None:
    """One problem, at its place, and no second one about the file that isn't there."""
    values = {"base": "a/b", "path": "data/rows.jsonl", "extends": "parent.yaml"} | {key: text}
    (folder / "r.yaml").write_text(
        f"extends: '{values['extends']}'\nmodel: {{base: '{values['base']}'}}\n"
        f"data: {{train: [{{path: '{values['path']}', format: text}}]}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    (found,) = caught.value.problems
    assert found.message.startswith(problem)
    assert found.place.startswith("r.yaml:")


def test_between_braces_it_needs_quotes(folder: Path) -> None:
    """YAML can't read {path: ${HERE}/x}; the message says what to write."""
    (folder / "r.yaml").write_text(
        "model: {base: a/b}\ndata: {train: [{path: ${HERE}/data/rows.jsonl, format: text}]}\n"
    )
    with pytest.raises(RecipeError, match=r"needs quotes: \"\$\{NAME\}/rows.jsonl\""):
        load_recipe("r.yaml")


def test_an_override_may_hold_one(folder: Path) -> None:
    """Where the shell didn't expand it."""
    (folder / "r.yaml").write_text(
        "model: {base: a/b}\ndata: {train: [{path: data/rows.jsonl, format: text}]}\n"
    )
    loaded = load_recipe("r.yaml", ["model.base=${HERE}/base"])
    assert loaded.recipe.model.base == str(folder / "base")
    assert loaded.origins["model.base"] == "command line, ${HERE}"
