"""YAML is read with positions, by the core schema of YAML 1.2, and what a recipe has no use for is refused in
place."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.recipe.reading.tree import Node, RecipeFile
from finetune.recipe.reading.yaml_tree import MAX_BYTES, plain_scalar, read_yaml

SOURCE = RecipeFile("r.yaml", Path("/"), Path("/r.yaml"))


def read(text: str | bytes) -> tuple[Node | None, list[str]]:
    tree, findings = read_yaml(text.encode() if isinstance(text, str) else text, SOURCE)
    return tree, [f"{finding.place} {finding.message}" for finding in findings]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1E3", 1000.0), (".5", 0.5), ("-1.", -1.0), ("12", 12), ("-0", 0), ("010", 10), ("0x1f", 31),
        ("0o17", 15),
        ("true", True), ("False", False), ("yes", "yes"), ("off", "off"), ("null", None), ("~", None), ("", None),
        ("1_000", "1_000"), ("1:30", "1:30"), ("1e", "1e"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    """An unquoted scalar means what YAML 1.2's core schema says, type included."""
    assert plain_scalar(text) == value
    assert type(plain_scalar(text)) is type(value)


def test_positions_are_those_of_keys_and_values() -> None:
    """Every key and every value has its own line and column, counted from 1."""
    tree, problems = read("a: 1\nb:\n  c: [x, yy]\n")
    assert tree is not None
    assert not problems
    c = tree.find(("b", "c"))
    assert c is not None
    assert (str(c.key_place), str(c.place)) == ("r.yaml:3:3", "r.yaml:3:6")
    assert str(c.child(1).place) == "r.yaml:3:10"  # type: ignore[union-attr]
    assert tree.plain() == {"a": 1, "b": {"c": ["x", "yy"]}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "r.yaml:4:3 duplicate key; first on line 3"),
        ("a: 1\n\tb: 2\n", "r.yaml:2:1 a tab in the indentation; YAML is indented with spaces"),
        ("a:\t1\n", "r.yaml:1:3 a tab; YAML is written with spaces"),
        (
            "a: !!python/object/apply:os.system [x]\n",
            "r.yaml:1:4 the YAML tag !!python/object/apply:os.system is not allowed",
        ),
        ("a: !env HOME\n", "r.yaml:1:4 the YAML tag !env is not allowed"),
        ("a: !!float 1\n", "r.yaml:1:4 the YAML tag !!float is not allowed"),
        ("a: 2026-01-01\n", "r.yaml:1:4 got the date 2026-01-01"),
        ("a: .nan\n", "r.yaml:1:4 got .nan, expected a finite number"),
        ("a: [1, -.inf]\n", "r.yaml:1:8 got -.inf, expected a finite number"),
        ("a: 1e999\n", "r.yaml:1:4 got 1e999, which is too large"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1 a second document starts here"),
        ('a: "\\0"\n', "r.yaml:1:4 a text with the character U+0000"),
        ('a: "\\ud800"\n', "r.yaml:1:4 a text with half of a surrogate pair"),
        ("%YAML 1.1\n---\na: 1\n", "r.yaml:2:1 a recipe is YAML 1.2"),
        (
            "3: a\n",
            'r.yaml:1:1 got the key 3, which is a number in YAML, and a key is text: put it in quotes, "3"',
        ),
        (
            "labels: {True: a}\n",
            "r.yaml:1:10 got the key True, which is true or false in YAML, and a key is text: put it in",
        ),
        (
            "a:\n  1.0: b\n",
            "r.yaml:2:3 got the key 1.0, which is a number in YAML, and a key is text: put it in quotes, "
            '"1.0"',
        ),
        (
            "~: a\n",
            'r.yaml:1:1 got the key ~, which is null in YAML, and a key is text: put it in quotes, "~"',
        ),
        (
            "2026-01-01: a\n",
            "r.yaml:1:1 got the key 2026-01-01, which is no text in YAML, and a key is text: put it in "
            "quotes",
        ),
        (
            ".inf: a\n",
            "r.yaml:1:1 got the key .inf, which is no text in YAML, and a key is text: put it in quotes",
        ),
        (": a\n", "r.yaml:1:1 a key is missing before the colon"),
        ("? [a]\n: 1\n", "r.yaml:1:3 got the key ['a'], which is a list, a section, an alias or has a tag"),
        ('"\\e[31m": 1\n', "r.yaml:1:1 got the key"),
        ("x: {b: 1}\na:\n  <<: {b: 1}\n", "r.yaml:3:3 << is not part of YAML 1.2; use `extends`"),
        ("a: *x\n", "r.yaml:1:4 *x stands for nothing that ends before it"),
        ("a: &x [*x]\n", "r.yaml:1:8 *x stands for nothing that ends before it"),
        ("a: [1,\n", "r.yaml:2:1 not YAML: "),
        ("a: b: c\n", "r.yaml:1:5 not YAML: a second `key:`"),
        ("a: 1\n b: 2\n", "r.yaml:2:3 not YAML: a second `key:`"),
        ("a: \x01\n", "r.yaml:1:4 character U+0001 is not allowed"),
        ("[" * 1000, "r.yaml:1:52 nested more than 50 levels deep"),
        (b"a: 1\nb: \xff\n", "r.yaml:2:4 byte 0xff is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "r.yaml:1:1 a recipe has at most 1,000,000 bytes"),
    ],
)
def test_what_a_recipe_has_no_use_for_is_refused_in_place(text: str | bytes, problem: str) -> None:
    """Each refused thing is named once, with its line and column."""
    _, problems = read(text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_an_alias_is_allowed_and_a_bomb_of_them_is_not() -> None:
    """A small alias stands for its anchor's value; aliases that multiply are stopped at 10,000 values."""
    tree, problems = read("a: &x {b: 1}\nc: *x\n")
    assert tree is not None
    assert tree.plain() == {"a": {"b": 1}, "c": {"b": 1}}
    assert not problems
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    _, problems = read(bomb)
    assert len(problems) == 1
    assert problems[0].endswith("more than 10,000 values once aliases are expanded")


def test_several_problems_of_one_file_come_together() -> None:
    """What doesn't stop the reading is collected."""
    _, problems = read("a: !x 1\na: 2\nb: 2026-01-01\n")
    assert [problem.split()[0] for problem in problems] == ["r.yaml:1:4", "r.yaml:2:1", "r.yaml:3:4"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!?|>'\"%@#, \n\t\\0uU1e.~<=\x85é"), max_size=40))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever the text, the reader gives a tree or a finding and raises nothing."""
    tree, findings = read_yaml(text.encode(), SOURCE)
    assert (
        tree is not None
        or findings
        or not text.strip()
        or "#" in text
        or "-" in text
        or "." in text
        or "\ufeff" in text
    )
