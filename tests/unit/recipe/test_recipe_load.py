"""A recipe loads with origins, or every problem in it is reported at once, each where it stands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from data_prep.config import CHAT_TEMPLATES, FileSource, HubSource
from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.lock import Lock
from finetune.recipe.reading.explain import BASE_FORMS, SOURCE_FORMS
from finetune.recipe.schema import Recipe

GOOD = """\
model:
  base: owner/name
data:
  train:
    - {path: rows.json, format: alpaca}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rows.json in it."""
    (tmp_path / "rows.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    (folder / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_ten_mistakes_give_ten_lines(folder: Path) -> None:
    """Wrong keys, types, bounds and choices, broken rules, absent files and a duplicate key: one line each,
    in their order."""
    found = problems(
        folder,
        """\
model:
  base: {ggu: x.gguf}
  new_tokens: [a, 3, " "]
adapter:
  method: lorra
  alpha: 0
data:
  train:
    - path: absent.json
      format: alpacca
    - {dataset: a/b, path: rows.json, format: text}
  evaluation: {fraction: 2}
train:
  learning_rte: 2e-4
  epochs: "3"
  max_steps: 1.0
  max_steps: 3
  rank: 5
  seed: !!int 3
  activation_checkpointing: yes
  global_batch_size: 7
  micro_batch_size: 2
  early_stopping: {}
tracking: 4
extra: 1
""",
    )
    assert found == [
        "r.yaml:2:10  model.base.ggu  unknown key; did you mean gguf?",
        "r.yaml:3:19  model.new_tokens.1  got 3, expected text; put it in quotes",
        "r.yaml:5:11  adapter.method  got 'lorra', expected lora, qlora, full, miss, oft, vera or loha; did you mean lora?",
        "r.yaml:6:10  adapter.alpha  got 0, expected more than 0",
        f"r.yaml:9:13  data.train.0.path  no such file: looked at {folder / 'absent.json'}",
        "r.yaml:10:15  data.train.0.format  got 'alpacca', expected auto, alpaca, prompt_completion, prompt, "
        "messages, sharegpt, text, question_answer, classification, regression, translation, summarisation, "
        "code, preference, feedback, template or python; did you mean alpaca?",
        "r.yaml:11:7  data.train.1  path and dataset exclude each other; expected {path: FILE, format: "
        "NAME}, {dataset: OWNER/NAME, format: NAME} or {generated: orders}",
        "r.yaml:12:26  data.evaluation.fraction  got 2, expected less than 1",
        "r.yaml:14:3  train.learning_rte  unknown key; did you mean learning_rate?",
        "r.yaml:15:11  train.epochs  got the text '3', expected a number; remove the quotes",
        "r.yaml:16:14  train.max_steps  got 1.0, expected a whole number; write 1",
        "r.yaml:17:3  train.max_steps  duplicate key; first on line 16",
        "r.yaml:18:3  train.rank  unknown key here; did you mean adapter.rank?",
        "r.yaml:19:9  train.seed  the YAML tag !!int is not allowed; write the plain value",
        "r.yaml:20:29  train.activation_checkpointing  got the text 'yes', expected true or false; write "
        "true",
        "r.yaml:22:21  train.micro_batch_size  global_batch_size 7 is not divisible by micro_batch_size 2; "
        "the nearest that is: 6 or 8",
        "r.yaml:23:3  train.early_stopping  needs train.evaluate_every: it judges by the evaluation "
        "loss during training",
        "r.yaml:24:11  tracking  got 4, expected a section (a mapping of keys)",
        "r.yaml:25:1  extra  unknown key; a recipe has model, adapter, objective, data, train, evaluate, "
        "tracking, output, sweep",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml:1:1  the file is empty"),
        ("# nothing\n", "r.yaml:1:1  the file is empty"),
        ("- a\n", "r.yaml:1:1  expected a mapping of sections"),
        (
            "data: {train: [{generated: orders}]}\n",
            "r.yaml:1:1  model  missing: Which base, its tokenizer and its positions",
        ),
        (
            "model: {}\ndata: {train: [{generated: orders}]}\n",
            "r.yaml:1:1  model.base  missing: A hub id (owner/name), a folder",
        ),
        (GOOD.replace("owner/name", "3"), "r.yaml:2:9  model.base  got 3, expected a hub id"),
        (
            GOOD + "adapter: {layers: first 3}\n",
            "r.yaml:6:19  adapter.layers  got the text 'first 3', expected last N (last 16), or a list of layer numbers",
        ),
        (
            GOOD + "adapter: {layers: [0, a]}\n",
            "r.yaml:6:23  adapter.layers.1  got the text 'a', expected a whole number",
        ),
        (GOOD + "adapter: {layers: [-1]}\n", "r.yaml:6:20  adapter.layers.0  got -1, expected at least 0"),
        (GOOD + "adapter: {layers: []}\n", "r.yaml:6:11  adapter.layers  got an empty list"),
        (
            GOOD + "adapter: {init: pisa}\n",
            "r.yaml:6:17  adapter.init  got the text 'pisa', expected default, gaussian, orthogonal, pissa, pissa_niter_N",
        ),
        (
            GOOD + "adapter: {compute_dtype: bfloat16}\n",
            "r.yaml:6:11  adapter.compute_dtype  a quantised base is computed with in train.precision: set that",
        ),
        (GOOD.replace("owner/name", "name"), "r.yaml:2:9  model.base  got 'name', expected a hub id"),
        (GOOD.replace("owner/name", "./absent"), "r.yaml:2:9  model.base  no such folder: looked at "),
        (
            GOOD.replace("owner/name", "x/y.gguf"),
            "r.yaml:2:9  model.base  got a GGUF file, expected {gguf: x/y.gguf}",
        ),
        (
            GOOD.replace("owner/name", "{gguf: x.gguf}"),
            "r.yaml:2:16  model.base.gguf  no such file: looked at ",
        ),
        (
            GOOD.replace("owner/name", "{wheel: a==1, file: b, sha256: AB}"),
            "r.yaml:2:40  model.base.sha256  got the text 'AB', expected 64 hexadecimal digits in lower case",
        ),
        (
            GOOD.replace("owner/name", "{wheel: a==1, file: b}"),
            "r.yaml:2:3  model.base.sha256  missing: The member's SHA-256",
        ),
        (
            GOOD.replace("owner/name", "{}"),
            "r.yaml:2:3  model.base  got a section with nothing; expected a hub id",
        ),
        (
            GOOD.replace("path: rows.json", "pth: rows.json"),
            "r.yaml:5:8  data.train.0.pth  unknown key; did you mean path?",
        ),
        (GOOD.replace(", format: alpaca", ""), "r.yaml:5:7  data.train.0.format  missing: How a row becomes"),
        (
            GOOD.replace("{path: rows.json, format: alpaca}", "rows.json"),
            "r.yaml:5:7  data.train.0  got the text 'rows.json'",
        ),
        (
            GOOD.replace("{path: rows.json, format: alpaca}", "{generated: odrers}"),
            "r.yaml:5:19  data.train.0.generated  got 'odrers', expected orders; did you mean orders?",
        ),
        (
            "model: {base: a/b}\ndata: {train: []}\n",
            "r.yaml:2:8  data.train  got an empty list, expected at least one item",
        ),
        (GOOD + "  evaluation: {}\n", "r.yaml:6:3  data.evaluation  give either fraction, rows or sources"),
        (
            GOOD + "adapter: {target_modules: q_proj}\n",
            "r.yaml:6:27  adapter.target_modules  got 'q_proj', expected all-linear or a list of",
        ),
        (
            GOOD + "adapter: {target_modules: [1]}\n",
            "r.yaml:6:28  adapter.target_modules.0  got 1, expected text; put it in quotes",
        ),
        (GOOD + "adapter: {target_modules: []}\n", "r.yaml:6:11  adapter.target_modules  got an empty list"),
        (
            GOOD + "adapter: {target_modules: 3}\n",
            "r.yaml:6:27  adapter.target_modules  got 3, expected all-linear or a list of names",
        ),
        (
            GOOD + "adapter: {modules_to_save: lm_head}\n",
            "r.yaml:6:28  adapter.modules_to_save  got the text 'lm_head', expected",
        ),
        (GOOD + "adapter: {rank: true}\n", "r.yaml:6:17  adapter.rank  got true, expected a whole number"),
        (GOOD + "adapter: {rank: 99999999999999999999999}\n", "r.yaml:6:17  adapter.rank  got 999999"),
        (GOOD + "train:\n", "r.yaml:6:1  train  got null, expected a section"),
        (
            GOOD + "adapter: {continue_from: rows.json}\n",
            "r.yaml:6:26  adapter.continue_from  no such adapter folder: looked at",
        ),
        (
            GOOD + "adapter: {continue_from: .}\n",
            "r.yaml:6:26  adapter.continue_from  not an adapter folder: ",
        ),
        (
            GOOD.replace("name\n", "name\n  chat_template: chatlm\n"),
            "r.yaml:3:18  model.chat_template  got 'chatlm', expected alpaca",
        ),
        (GOOD + "output: {name: ../x}\n", "r.yaml:6:16  output.name  got the text '../x', expected letters"),
    ],
)
def test_one_mistake_gives_one_line(folder: Path, text: str, problem: str) -> None:
    """A mistake gives one line, with its place, its path, and what was expected."""
    found = problems(folder, text)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_extends_merges_sections_and_replaces_the_rest(folder: Path) -> None:
    """Sections merge over several levels; lists, scalars, model.base and data.evaluation are replaced
    whole."""
    (folder / "deep").mkdir()
    (folder / "deep/a.yaml").write_text(
        GOOD.replace("rows.json", "../rows.json")
        + "  evaluation: {fraction: 0.5}\ntrain: {epochs: 2, seed: 1}\n"
        "adapter: {target_modules: [q_proj, v_proj]}\n"
    )
    (folder / "b.yaml").write_text(
        "extends: deep/a.yaml\ntrain: {seed: 2}\nadapter:\n  target_modules: [o_proj]\n"
    )
    (folder / "c.yaml").write_text(
        "extends: b.yaml\nmodel:\n  base: {wheel: a==1, file: b.gguf, sha256: " + "a" * 64 + "}\n"
        "data:\n  evaluation: {sources: [{path: rows.json, format: alpaca}]}\n"
    )
    loaded = load_recipe("c.yaml")
    assert loaded.recipe.adapter.target_modules == ("o_proj",)
    assert (loaded.recipe.train.epochs, loaded.recipe.train.seed) == (2, 2)
    assert loaded.recipe.data.evaluation is not None
    assert loaded.recipe.data.evaluation.fraction is None
    train = loaded.recipe.data.train[0]
    assert isinstance(train, FileSource)
    assert train.path == str(folder / "rows.json")
    origins = loaded.origins
    assert origins["train.epochs"] == "deep/a.yaml:7"
    assert origins["train.seed"] == "b.yaml:2"
    assert origins["adapter.target_modules"] == "b.yaml:4"
    assert origins["model.base.file"] == "c.yaml:3"
    assert origins["data.evaluation.sources.0.path"] == "c.yaml:5"
    assert origins["train.learning_rate"] == "default"


def test_problems_of_extended_files_name_their_file(folder: Path) -> None:
    """A problem stands where it was written, in whichever file; the recipe's own come first."""
    (folder / "a.yaml").write_text(GOOD + "train: {epoch: 2}\n")
    found = problems(folder, "extends: a.yaml\nadapter: {rank: 0}\n")
    assert found == [
        "r.yaml:2:17  adapter.rank  got 0, expected at least 1",
        "a.yaml:6:9  train.epoch  unknown key; did you mean epochs?",
    ]


def test_cycles_and_absent_files_in_extends_are_named(folder: Path) -> None:
    """A recipe that extends itself, over however many files, or a file that isn't there, is refused at its
    extends."""
    (folder / "a.yaml").write_text("extends: r.yaml\n")
    assert problems(folder, "extends: a.yaml\n")[0] == (
        "a.yaml:1:10  extends  a recipe can't extend itself: r.yaml -> a.yaml -> r.yaml"
    )
    assert len(problems(folder, "extends: a.yaml\ntrain: {early_stopping: {}}\n")) == 1
    assert problems(folder, GOOD + "extends: b.yaml\n") == [
        f"r.yaml:6:10  extends  no such file: {folder / 'b.yaml'}"
    ]
    assert problems(folder, GOOD + f"extends: {'b' * 300}\n") == [
        f"r.yaml:6:10  extends  file name too long: {folder / ('b' * 300)}"
    ]
    assert problems(folder, GOOD + "extends: [b]\n")[0].startswith("r.yaml:6:1  extends  expected the path")


def test_overrides_win_and_say_so(folder: Path) -> None:
    """key=value is parsed as YAML, reaches into lists, merges sections, and its origin is the command
    line."""
    (folder / "sub").mkdir()
    (folder / "sub/r.yaml").write_text(GOOD.replace("rows.json", "absent.json") + "train: {epochs: 2}\n")
    loaded = load_recipe(
        "sub/r.yaml",
        ["train.learning_rate=2e-4", "train={seed: 3}", "data.train.0.path=rows.json", "adapter.target_modules=[q_proj]",
         "train.max_gradient_norm=null", "data.evaluation={fraction: 0.5}", "data.evaluation={sources: [{generated: orders}]}"],
    )  # fmt: skip
    train = loaded.recipe.train
    assert (train.learning_rate, train.seed, train.epochs, train.max_gradient_norm) == (2e-4, 3, 2, None)
    assert loaded.recipe.adapter.target_modules == ("q_proj",)
    source = loaded.recipe.data.train[0]
    assert isinstance(source, FileSource)
    assert source.path == str(
        folder / "rows.json"
    )  # from the working directory, not from the recipe's folder
    assert loaded.origins["data.train.0.path"] == "command line"
    assert loaded.origins["data.train.0.format"] == "r.yaml:5"
    assert loaded.origins["train.seed"] == "command line"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("foo", "command line  got 'foo', expected section.key=value"),
        ("=1", "command line  got '=1', expected section.key=value"),
        ("train.sed=1", "command line  train.sed  unknown key; did you mean seed?"),
        ("train.seed=-1", "command line  train.seed  got -1, expected at least 0"),
        ("train.seed.x=1", "command line  train.seed.x  unknown"),
        ("train.epochs=[1", "command line  train.epochs  not YAML"),
        ("train.epochs=!x 1", "command line  train.epochs  the YAML tag !x is not allowed"),
        (
            "data.train.1.path=x",
            "command line  data.train.1.path  data.train is a list of 1, expected an index from 0 to 0",
        ),
        ("data.train.x=1", "command line  data.train.x  data.train is a list of 1"),
        (
            "model.base.gguf=x",
            "command line  model.base.gguf  model.base is the value 'owner/name', which has no keys; write",
        ),
        ("extends=a.yaml", "command line  extends  extends can't be overridden"),
    ],
)
def test_a_wrong_override_is_a_problem_of_the_command_line(folder: Path, override: str, problem: str) -> None:
    """A wrong override is named with its path, and its place is the command line."""
    found = problems(folder, GOOD, override)
    if override == "train.seed.x=1":
        assert found == ["command line  train.seed  got a section, expected a whole number"]
        return
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_paths_become_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths start at the recipe's folder, output.folder at the working directory, and a folder that exists is
    no hub id."""
    for name in ("sub/owner/name", "sub/adapter"):
        (folder / name).mkdir(parents=True)
    (folder / "sub/owner/name/config.json").write_text("{}")
    (folder / "sub/adapter/adapter_config.json").write_text("{}")
    (folder / "sub/t.jinja").write_text("")
    (folder / "sub/r.yaml").write_text(
        GOOD.replace("rows.json", "../rows.json").replace("name\n", "name\n  chat_template: t.jinja\n")
        + "adapter: {continue_from: ./adapter}\noutput: {folder: out}\n"
    )
    recipe = load_recipe("sub/r.yaml").recipe
    assert recipe.model.base == str(folder / "sub/owner/name")
    assert recipe.model.chat_template == str(folder / "sub/t.jinja")
    assert recipe.adapter.continue_from == str(folder / "sub/adapter")
    assert recipe.output.folder == str(folder / "out")
    (folder / "r.yaml").write_text(GOOD)
    assert load_recipe(folder / "r.yaml").recipe.output.folder == str(folder / "runs")
    assert load_recipe(folder / "r.yaml").recipe.model.base == "owner/name"


def test_origins_name_every_leaf(folder: Path) -> None:
    """The origins have exactly the leaves of the resolved recipe."""
    (folder / "r.yaml").write_text(GOOD)
    loaded = load_recipe("r.yaml", ["model.new_tokens=[a, b]"])
    for path in loaded.origins:
        value: object = loaded.recipe.model_dump(mode="json")
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]  # type: ignore[index]
        assert not isinstance(value, dict) or not value  # an empty mapping is a leaf
    assert loaded.origins["model.new_tokens"] == "command line"
    assert loaded.origins["model.base"] == "r.yaml:2"


def test_a_name_that_is_no_recipe_gets_a_guess(folder: Path) -> None:
    """A recipe that isn't there is named with the place that was looked at and the shipped recipe that was
    meant."""
    with pytest.raises(RecipeError, match="did you mean the shipped recipe quickstart"):
        load_recipe("quikstart")
    with pytest.raises(RecipeError, match="no such recipe: looked at"):
        load_recipe("zzz")
    with pytest.raises(RecipeError, match="this is a folder"):
        load_recipe(folder)


def _section_unions(form: type[BaseModel]) -> set[frozenset[type]]:
    """Every set of several sections that one knob may hold, over the whole schema."""
    from data_prep.config import sections_in

    found: set[frozenset[type]] = set()
    for field in form.model_fields.values():
        forms = sections_in(field.annotation)
        found |= {frozenset(forms)} if len(forms) > 1 else set()
        for below in forms:
            found |= _section_unions(below)
    return found


def test_every_union_of_sections_has_its_table() -> None:
    """A section of several forms is known by the key that only one form has; no union of the schema lacks its
    table."""
    assert _section_unions(Recipe) == {frozenset(BASE_FORMS.values()), frozenset(SOURCE_FORMS.values())}
    for forms in (BASE_FORMS, SOURCE_FORMS):
        for key, form in forms.items():
            assert [other for other in forms.values() if key in other.model_fields] == [form]
            assert form.model_fields[key].is_required()
    assert HubSource in SOURCE_FORMS.values()


def test_chat_template_names_are_the_templates_that_exist() -> None:
    """The named chat templates are the files in data_prep/chat/templates."""
    import data_prep

    templates = Path(data_prep.__file__).parent / "chat" / "templates"
    assert {path.stem for path in templates.glob("*.jinja")} == set(CHAT_TEMPLATES)


KEYS = ["model", "base", "data", "train", "path", "format", "generated", "evaluation", "fraction", "sources", "adapter", "x",
        "target_modules", "rank", "train.0", "new_tokens", "early_stopping", "rope_scaling", "type", "factor", "extends"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.sampled_from(["orders", "alpaca", "full", "lora", "a/b", "~", "~nobody/x", "\0"]) | st.just(10**400),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*Recipe.model_fields, "extends"), VALUES)))
def test_no_tree_breaks_the_loader(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    """Whatever a recipe holds, loading gives a recipe or a RecipeError with problems that all have a
    place."""
    path = tmp_path_factory.mktemp("any") / "r.yaml"
    path.write_text(json.dumps(values))
    problems = []
    try:
        load_recipe(path)
    except RecipeError as error:
        problems = error.problems or [None]
    assert all(problem and problem.place and problem.message for problem in problems)


def test_defaults_of_a_lock_are_not_asked_for(tmp_path: Path) -> None:
    """A run's lock holds every default; beside it, as another's recipe, only what was written counts, and an
    override that has no effect is refused though it equals the default."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {base: owner/name}\ndata: {train: [{generated: orders}]}\n")
    loaded = load_recipe(recipe)
    folder = tmp_path / "run-1"
    folder.mkdir()
    lock = Lock(recipe=loaded.recipe, command="train", created="2026", origins=loaded.origins)
    (folder / "recipe.lock.yaml").write_text(lock.to_yaml())
    again = load_recipe(folder / "recipe.lock.yaml", ["train.learning_rate=1e-3"])
    assert again.recipe.train.minimum_learning_rate_fraction == 0.1
    with pytest.raises(RecipeError, match="only schedules cosine_with_minimum and wsd have a minimum"):
        load_recipe(folder / "recipe.lock.yaml", ["train.minimum_learning_rate_fraction=0.1"])
    (folder / "recipe.lock.yaml").write_text(replace(lock, origins={}).to_yaml())
    assert load_recipe(folder / "recipe.lock.yaml").recipe == loaded.recipe
