"""The rules of the data section: packs, mixtures, streams, leakage, findings, and what a source may have."""

from pathlib import Path

import pytest

from data_prep.config import FileSource, OrdersSource
from finetune.errors import Problem, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe

ORDERS = "{generated: orders}"
HELD_OUT = "{sources: [{generated: orders, split: held_out}]}"
SHARES = "{generated: orders, share: 0.25}, {generated: orders, seed: 1, share: %s}"
CODE = "def parse(row):\n    return row\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that recipes of this module name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("code.py").write_text(CODE)


def load(train: str = ORDERS, more: str = "", steps: str = "") -> Recipe:
    """A recipe with these sources in data.train, more keys of data, and train.max_steps."""
    text = f"model: {{base: owner/name}}\ndata:\n  train: [{train}]\n"
    text += "".join(f"  {line}\n" for line in more.split("; ") if line)
    Path("r.yaml").write_text(text + (f"train: {{max_steps: {steps}}}\n" if steps else ""))
    return load_recipe("r.yaml").recipe


def problems(train: str = ORDERS, more: str = "", steps: str = "") -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        load(train, more, steps)
    return caught.value.problems


@pytest.mark.parametrize(
    ("train", "more", "steps", "line", "path", "message"),
    [
        # _packs
        (ORDERS, "pack_length_tokens: 512", "", 4, "data.pack_length_tokens",
         "a pack of 512 tokens can't hold a document of max_length_tokens (2048); "
         "make them equal, or set data.pack_split: true"),
        (ORDERS, "max_length_tokens: 1024; pack_length_tokens: 512", "", 5, "data.pack_length_tokens",
         "a pack of 512 tokens can't hold a document of max_length_tokens (1024); "
         "make them equal, or set data.pack_split: true"),
        (ORDERS, "pack_split: true", "", 4, "data.pack_split",
         "needs data.pack_length_tokens: without packs nothing is cut where one is full"),
        (ORDERS, "pack_length_tokens: 7", "", 4, "data.pack_length_tokens", "got 7, expected at least 8"),
        (ORDERS, "attention: leaky", "", 4, "data.attention",
         "is that within packs: set data.pack_length_tokens, or remove this"),
        # _changed_rows
        ("{path: rows.jsonl, format: text}", "system: Be brief.", "", 4, "data.system",
         "every source makes plain texts, which have no system message; remove this"),
        (ORDERS, "placeholders: {A: A}", "", 4, "data.placeholders", "'A' is replaced by itself; remove it"),
        (ORDERS, 'placeholders: {"": A}', "", 4, "data.placeholders",
         "got the key ''; a key is plain, printable text"),
        # loss_weights
        (ORDERS, 'loss_weights: {"(": 1}', "", 4, "data.loss_weights",
         "'(' is no regular expression: missing ), unterminated subpattern at position 0"),
        (ORDERS, 'loss_weights: {"a*": 1}', "", 4, "data.loss_weights",
         "'a*' matches an empty text; expected one that matches some text"),
        (ORDERS, "loss_weights: {a: -1}", "", 4, "data.loss_weights.a", "got -1, expected at least 0"),
        # _subsets
        ("{generated: orders, sample_seed: 0}", "", "", 3, "data.train.0.sample_seed",
         "draws sample_rows, which isn't set; set it, or remove this"),
        ("{generated: orders, sample_rows: 9, max_rows: 8}", "", "", 3, "data.train.0.sample_rows",
         "9 rows can't be drawn from the first 8 (max_rows)"),
        ("{generated: orders, max_rows: 0}", "", "", 3, "data.train.0.max_rows", "got 0, expected at least 1"),
        ("{generated: orders, evaluation_rows: 9}", "evaluation: {rows: 3}", "", 3,
         "data.train.0.evaluation_rows",
         "rows are held out either of single sources or by data.evaluation; remove one of the two"),
        ("{generated: orders, evaluation_rows: 9, max_rows: 9}", "", "", 3, "data.train.0.evaluation_rows",
         "must be fewer than max_rows (9), so that rows are left to train on"),
        ("{generated: orders, evaluation_rows: 9, sample_rows: 9}", "", "", 3, "data.train.0.evaluation_rows",
         "must be fewer than sample_rows (9), so that rows are left to train on"),
        (ORDERS, "evaluation: {rows: 3, fraction: 0.5}", "", 4, "data.evaluation",
         "give either fraction, rows or sources"),
        (ORDERS, "evaluation: {sources: [{generated: orders, split: held_out, evaluation_rows: 3}]}", "", 4,
         "data.evaluation.sources.0.evaluation_rows",
         "all rows of this source are evaluated on; max_rows and sample_rows take fewer of them"),
        # ModelScope
        ("{dataset: AI-ModelScope/alpaca-gpt4-data-zh#500, format: alpaca}", "", "", 3,
         "data.train.0.dataset",
         "got 'AI-ModelScope/alpaca-gpt4-data-zh#500', a name of ModelScope; names here are those of the Hugging "
         "Face hub (owner/name): it is llm-wizard/alpaca-gpt4-data-zh there, or give the path of a copy on this "
         "machine; #500 is sample_rows: 500"),
        ("{dataset: 'https://modelscope.cn/datasets/iic/rows', format: alpaca}", "", "", 3,
         "data.train.0.dataset",
         "got 'https://modelscope.cn/datasets/iic/rows', a name of ModelScope; names here are those of the "
         "Hugging Face hub (owner/name): look for iic/rows, or what it is a copy of, there, or give the path of "
         "a copy on this machine"),
        ("{dataset: owner/rows#20, format: alpaca}", "", "", 3, "data.train.0.dataset",

         "got 'owner/rows#20', expected the name alone, owner/rows; #20 is sample_rows: 20"),
        # _streaming
        (ORDERS, "streaming: {}; evaluation: {rows: 3}", "9", 5, "data.evaluation.rows",
         "a share of a stream can't be held out, its length isn't known; use data.evaluation.sources"),
        (f"{ORDERS}, {{generated: orders, seed: 1}}", "streaming: {}; shuffle: false", "9", 5, "data.shuffle",
         "a stream reads its sources a row in turn, so only one source can keep its order; remove this"),
        ("{generated: orders, sample_rows: 9}", "streaming: {}", "9", 3, "data.train.0.sample_rows",
         "rows can't be drawn from a stream, whose number isn't known; use max_rows"),
        ("{generated: orders, evaluation_rows: 9}", "streaming: {}", "9", 3, "data.train.0.evaluation_rows",
         "rows of a stream can't be held out; use data.evaluation.sources"),
        # _mixture
        (ORDERS, "share_of: rows", "", 4, "data.share_of",
         "no source of data.train has a share; give each one, or remove this"),
        (ORDERS, "share_of: tokens", "", 4, "data.share_of",
         "no source of data.train has a share; give each one, or remove this"),
        (SHARES % "0.75, repeat: 1", "", "", 3, "data.train.1.repeat",
         "repeat and share exclude each other: the share decides how often rows are seen"),
        (f"{{generated: orders, share: 1}}, {ORDERS}", "", "", 3, "data.train.1",
         "has no share, and another source has one; give each source one"),
        (SHARES % 0.25, "", "", 3, "data.train", "the shares of the sources sum to 0.5, expected 1"),
        (SHARES % 0.751, "", "", 3, "data.train", "the shares of the sources sum to 1.001, expected 1"),
        (SHARES % "0.75, repeat: 2", "", "", 3, "data.train.1.repeat",
         "repeat and share exclude each other: the share decides how often rows are seen"),
        ("{generated: orders, share: 1.5}", "", "", 3, "data.train.0.share", "got 1.5, expected at most 1"),
        ("{generated: orders, share: 0}", "", "", 3, "data.train.0.share", "got 0, expected more than 0"),
        ("{generated: orders, repeat: 0}", "", "", 3, "data.train.0.repeat", "got 0, expected more than 0"),
        ("{generated: orders, repeat: 1001}", "", "", 3, "data.train.0.repeat", "got 1001, expected at most 1000"),
        ("{generated: orders, repeat: true}", "", "", 3, "data.train.0.repeat", "got true, expected a number"),
        # _streaming
        (ORDERS, "streaming: {}", "", 4, "data.streaming", "a stream has no known length; set train.max_steps"),
        (ORDERS, "streaming: {buffer_rows: 0}", "3", 4, "data.streaming.buffer_rows", "got 0, expected at least 1"),
        (ORDERS, "streaming: {}; evaluation: {fraction: 0.1}", "3", 5, "data.evaluation.fraction",
         "a share of a stream can't be held out, its length isn't known; use data.evaluation.sources"),
        (ORDERS, "streaming: {}; clean: {near_duplicates: 0.8}", "3", 5, "data.clean.near_duplicates",
         "near duplicates can't be found in a stream, whose rows aren't all kept; remove it"),
        (ORDERS, "streaming: {}; clean: {duplicates: drop}", "3", 5, "data.clean.duplicates",
         "duplicates can't be found in a stream, whose rows aren't all kept; remove it"),
        (ORDERS, f"streaming: {{}}; evaluation: {HELD_OUT}", "3", 4, "data.streaming",
         "a stream can't be checked for rows of the evaluation before it is trained on; set "
         "data.clean.leakage: keep"),
        (ORDERS, f"streaming: {{}}; evaluation: {HELD_OUT}; clean: {{leakage: drop}}", "3", 6, "data.clean.leakage",
         "a stream can't be checked for rows of the evaluation before it is trained on; set "
         "data.clean.leakage: keep"),
        ("{generated: orders, share: 1}", "streaming: {}", "3", 3, "data.train.0.share",
         "a stream has no exact shares: its sources are read a row in turn; remove it"),
        ("{generated: orders, repeat: 2}", "streaming: {}", "3", 3, "data.train.0.repeat",
         "a stream reads each row once a pass; remove it"),
        # _leakage
        (ORDERS, "clean: {leakage: drop}", "", 4, "data.clean.leakage",
         "leakage is into data.evaluation.sources, and there are none (a fraction keeps equal rows "
         "together); remove it"),
        (ORDERS, "clean: {leakage: keep}; evaluation: {fraction: 0.1}", "", 4, "data.clean.leakage",
         "leakage is into data.evaluation.sources, and there are none (a fraction keeps equal rows "
         "together); remove it"),
        # _supervise
        (ORDERS, "supervise: all; reasoning: context", "", 5, "data.reasoning",
         "with data.supervise all everything is learned, thoughts too; take learn or drop, or supervise "
         "assistant"),
        # _findings
        (ORDERS, "allow_findings: [leakage, double_bos, leakage]", "", 4, "data.allow_findings", "named twice: leakage"),
        (ORDERS, "allow_findings: [leekage]", "", 4, "data.allow_findings.0",
         "got 'leekage', expected no_supervised_token, unsupervised_end_of_turn, leakage, double_bos, "
         "prompt_not_learned, "
         "left_out_text or unknown_token; did you mean leakage?"),
        (ORDERS, "allow_findings: leakage", "", 4, "data.allow_findings",
         "got the text 'leakage', expected a list; write [leakage]"),
        # the schema: what a source may have
        ("{path: rows.jsonl, format: text, code: code.py}", "", "", 3, "data.train.0.code",
         "only format python has code; this one is text"),
        ("{dataset: owner/name, format: alpaca, code: code.py}", "", "", 3, "data.train.0.code",
         "only format python has code; this one is alpaca"),
        ("{path: rows.jsonl, format: python}", "", "", 3, "data.train.0",
         "format python needs `code: FILE`, a Python file with a function parse(row)"),
        ("{path: rows.jsonl, format: template, template: {prompt: a, completion: b, other_prompts: c}}", "", "", 3,
         "data.train.0.template.other_prompts", "got the text 'c', expected a list; write [c]"),
        ("{path: rows.jsonl, format: template, template: {prompt: a, completion: b, other_promts: [c]}}", "", "", 3,
         "data.train.0.template.other_promts", "unknown key; did you mean other_prompts?"),
        ("{path: rows.jsonl, format: text, template: {prompt: a, completion: b, other_prompts: [c]}}", "", "", 3,
         "data.train.0.template", "only format template has one; this one is text"),
        (ORDERS, "clean: {near_duplicates: 1}", "", 4, "data.clean.near_duplicates", "got 1, expected less than 1"),
        (ORDERS, "over_length: cut", "", 4, "data.over_length",
         "got 'cut', expected drop, refuse, truncate_end, truncate_start or split"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_one_problem(
    train: str, more: str, steps: str, line: int, path: str, message: str
) -> None:
    """A broken rule is exactly one problem, with the line and the path of the key to change and what to
    change it to."""
    (problem,) = problems(train, more, steps)
    assert (problem.path, problem.message) == (path, message)
    assert problem.place.startswith(f"r.yaml:{line}:")


def test_code_that_is_no_file(tmp_path: Path) -> None:
    """A file of code that isn't there is a problem at its key, with the path that was looked at, beside the
    recipe."""
    (problem,) = problems("{path: rows.jsonl, format: python, code: cod.py}")
    assert (problem.path, problem.message) == (
        "data.train.0.code",
        f"no such Python file: looked at {tmp_path / 'cod.py'}",
    )


RECIPE = r"""
model:
  base: owner/name
  chat_template: |
    {%- for message in messages -%}
    <{{ message.role }}>{{ message.content }}${HOME}{{ eos_token }}
    {%- endfor -%}
data:
  train: [{path: rows.jsonl, format: messages, max_rows: 5, evaluation_rows: 2}]
  shuffle: false
  attention: leaky
  pack_length_tokens: 2048
  system: "Be brief."
  placeholders: {"{{NAME}}": Ada, "[[a.b]]": ""}
  loss_weights: {"(?s)<think>.*?</think>": 0, 'Action[^\n]*\n': 2.5}
"""


def test_keys_that_are_texts_are_kept_as_written() -> None:
    """Placeholders, patterns and a template's text are read as they are written, variables in it too, and
    come out of the resolved recipe the same."""
    Path("r.yaml").write_text(RECIPE)
    recipe = load_recipe("r.yaml").recipe
    assert recipe.model.chat_template is not None
    assert recipe.model.chat_template.startswith("{%- for message in messages -%}\n<{{ message.role }}>")
    assert "${HOME}" in recipe.model.chat_template
    assert recipe.data.placeholders == {"{{NAME}}": "Ada", "[[a.b]]": ""}
    assert recipe.data.loss_weights == {"(?s)<think>.*?</think>": 0, r"Action[^\n]*\n": 2.5}
    assert recipe.data.evaluates
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_base_of_modelscope_is_refused() -> None:
    """A base's name is refused with the hub's, as a data set's is."""
    Path("r.yaml").write_text(
        "model: {base: LLM-Research/Meta-Llama-3.1-8B-Instruct}\ndata: {train: [{generated: orders}]}\n"
    )
    with pytest.raises(RecipeError, match=r"it is meta-llama/Llama-3\.1-8B-Instruct there") as caught:
        load_recipe("r.yaml")
    assert [problem.path for problem in caught.value.problems] == ["model.base"]


@pytest.mark.parametrize(("key", "value"), [("repeat", "2"), ("share", "1")])
def test_evaluation_rows_are_seen_once(key: str, value: str) -> None:
    """A source of data.evaluation that is repeated, or has a share, is refused with the source's number and
    the reason."""
    held_out = f"evaluation: {{sources: [{ORDERS}, {{generated: orders, seed: 1, {key}: {value}}}]}}"
    (problem,) = problems(ORDERS, held_out)
    assert problem.path.startswith("data.evaluation")
    assert "evaluation rows are seen once each; repeat and share are for data.train" in problem.message
    assert "sources.1" in f"{problem.path} {problem.message}"


@pytest.mark.parametrize("form", ["text", "template"])
def test_other_prompts_without_a_template(form: str) -> None:
    """Other prompts stand in the template, beside a prompt and a completion: elsewhere, or alone there, they
    are refused."""
    paths = [
        problem.path for problem in problems(f"{{path: rows.jsonl, format: {form}, other_prompts: [a]}}")
    ]
    assert "data.train.0.other_prompts" in paths
    alone = problems("{path: rows.jsonl, format: template, template: {other_prompts: [a]}}")
    assert [problem.path for problem in alone] == [
        "data.train.0.template.completion",
        "data.train.0.template.prompt",
    ]
    assert all(problem.message.startswith("missing: ") for problem in alone)


def test_every_problem_at_once() -> None:
    """Problems of rules and of the schema, in several sections, are reported together."""
    found = problems(
        f"{{path: rows.jsonl, format: text, code: code.py}}, {{generated: orders, share: 1}}, {ORDERS}",
        "pack_split: true; clean: {leakage: drop, duplicates: drp}; allow_findings: [leakage, leakage]",
    )
    paths = {problem.path for problem in found}
    assert {"data.train.0.code", "data.pack_split", "data.clean.duplicates", "data.allow_findings"} <= paths


@pytest.mark.parametrize(
    ("train", "more", "steps", "path"),
    [
        ("{generated: orders, share: x}, {generated: orders, seed: 1, share: 0.5}", "", "", "data.train.0.share"),
        ("{generated: orders, share: 2}, {generated: orders, seed: 1, share: 0.5}", "", "", "data.train.0.share"),
        (ORDERS, "pack_length_tokens: x; pack_split: true", "", "data.pack_length_tokens"),
        (ORDERS, "max_length_tokens: x; pack_length_tokens: 64", "", "data.max_length_tokens"),
        (ORDERS, "clean: {leakage: drop}; evaluation: {sources: [{generated: order}]}", "",
         "data.evaluation.sources.0.generated"),
        (ORDERS, "streaming: {}", "x", "train.max_steps"),
        (ORDERS, "streaming: {}; evaluation: {fraction: 3}", "3", "data.evaluation.fraction"),
        (ORDERS, "allow_findings: [leakage, leekage]", "", "data.allow_findings.1"),
    ],
)  # fmt: skip
def test_a_wrong_value_breaks_no_rule(train: str, more: str, steps: str, path: str) -> None:
    """A value that is there but wrong is reported as wrong only: no rule takes it for missing, or for its
    default."""
    assert [problem.path for problem in problems(train, more, steps)] == [path]


@pytest.mark.parametrize(
    ("train", "more", "steps"),
    [
        (ORDERS, "max_length_tokens: 512; pack_length_tokens: 512", ""),
        (ORDERS, "max_length_tokens: 512; pack_length_tokens: 4096", ""),
        (ORDERS, "pack_length_tokens: 512; pack_split: true", ""),
        (
            ORDERS,
            "pack_split: false; allow_findings: []; clean: {leakage: refuse}; streaming: null",
            "",
        ),
        (SHARES % 0.75, "", ""),
        (SHARES % "0.75", "share_of: rows", ""),
        (", ".join(f"{{generated: orders, seed: {seed}, share: 0.1}}" for seed in range(10)), "", ""),
        ("{generated: orders, repeat: 3}, {generated: orders, seed: 1, repeat: 0.5}", "", ""),
        (ORDERS, "streaming: {buffer_rows: 100}; pack_length_tokens: 2048", "3"),
        (ORDERS, f"streaming: {{}}; evaluation: {HELD_OUT}; clean: {{leakage: keep, unicode: NFC}}", "3"),
        (ORDERS, f"evaluation: {HELD_OUT}; clean: {{leakage: drop}}", ""),
        (ORDERS, f"evaluation: {HELD_OUT}; allow_findings: [leakage, double_bos]", ""),
        (ORDERS, "evaluation: {sources: [{generated: orders, repeat: 1}]}", ""),
        (
            ORDERS,
            "clean: {near_duplicates: 0.8, duplicates: drop, minimum_answer_characters: 2, unicode: NFKC}",
            "",
        ),
        ("{path: rows.jsonl, format: python, code: code.py}", "on_bad_row: skip", ""),
        (
            "{path: rows.jsonl, format: template, template: {prompt: a, completion: b, other_prompts: [c, "
            "d]}}",
            "",
            "",
        ),
    ],
)
def test_a_recipe_that_keeps_the_rules_is_loaded(train: str, more: str, steps: str) -> None:
    """Every feature has a recipe that passes, and a value that asks for nothing is no mistake."""
    assert load(train, more, steps).data.train


def test_values_arrive() -> None:
    """What a recipe says of code, other prompts and shares is what the loaded recipe holds; paths are
    absolute."""
    python, template = load(
        "{path: rows.jsonl, format: python, code: code.py, share: 0.5}, {path: rows.jsonl, format: template, "
        "share: 0.5, template: {prompt: a, completion: b, other_prompts: [c, d]}}"
    ).data.train
    assert isinstance(python, FileSource)
    assert python.code is not None
    assert Path(python.code).is_absolute()
    assert Path(python.code).read_text() == CODE
    assert isinstance(template, FileSource)
    assert template.template is not None
    assert template.template.other_prompts == ("c", "d")
    (orders,) = load("{generated: orders, repeat: 2}").data.train
    assert isinstance(orders, OrdersSource)
    assert (orders.repeat, orders.share, python.share) == (2.0, None, 0.5)
