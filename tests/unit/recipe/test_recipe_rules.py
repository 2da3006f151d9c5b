"""Each rule between keys holds where it should, and only there."""

from pathlib import Path

import pytest

from finetune.recipe.load import load_recipe
from tests.support.recipes import found

EVALUATION = "data: {evaluation: {fraction: 0.1}}"
FILE = "{data: {train: [{path: %s, format: %s}]}}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: {evaluate_every: 5}", "train.evaluate_every  needs rows to evaluate on"),
        (
            "{train: {early_stopping: {}, evaluate_every: 5}, evaluate: {max_rows: 3}, " + EVALUATION + "}",
            None,
        ),
        (
            "{train: {early_stopping: {}}, " + EVALUATION + "}",
            "train.early_stopping  needs train.evaluate_every",
        ),
        ("evaluate: {max_rows: 3}", "evaluate.max_rows  needs rows to evaluate on"),
        ("train: {epochs: 1, max_steps: 3}", "train.max_steps  epochs and max_steps exclude each other"),
        ("train: {max_steps: 3}", None),
        (
            "train: {global_batch_size: 3, micro_batch_size: 2}",
            "train.micro_batch_size  global_batch_size 3 is not divisible",
        ),
        ("train: {global_batch_size: 4, micro_batch_size: 2}", None),
        ("adapter: {method: full, rank: 16, dropout: 0.0}", "adapter.rank  method full trains all weights"),
        ("adapter: {method: full, dropout: 0.0, init: default, use_dora: false, modules_to_save: []}", None),
        ("adapter: {method: full, rank: 8}", "adapter.rank  method full trains all weights"),
        (
            "adapter: {method: full, continue_from: x}",
            "adapter.continue_from  method full trains all weights",
        ),
        ("{adapter: {method: full}, model: {new_tokens: [a]}}", None),
        (
            "{adapter: {method: qlora, use_dora: true, modules_to_save: [lm_head]}, train: {precision: "
            "fp16}}",
            None,
        ),
        (
            "adapter: {continue_from: x, init: gaussian}",
            "adapter.init  the adapter that is continued",
        ),
        (
            "adapter: {target_modules: [q_proj, lm_head], modules_to_save: [lm_head]}",
            "adapter.modules_to_save  lm_head can't be",
        ),
        ("adapter: {modules_to_save: [q_proj]}", "adapter.modules_to_save  q_proj can't be"),
        ("adapter: {target_modules: [q_proj, q_proj]}", "adapter.target_modules  named twice: q_proj"),
        ('adapter: {modules_to_save: [""]}', "adapter.modules_to_save  got an empty name"),
        ("train: {decay_fraction: 0.3}", "train.decay_fraction  only schedule wsd"),
        ("train: {schedule: wsd, decay_fraction: 0.2, minimum_learning_rate_fraction: 0.1}", None),
        (
            "train: {schedule: wsd, warmup_ratio: 0.9}",
            "train.warmup_ratio  warmup_ratio + decay_fraction is 0.9 + 0.2",
        ),
        (
            "train: {schedule: linear, minimum_learning_rate_fraction: 0.2}",
            "train.minimum_learning_rate_fraction  only schedules",
        ),
        ("train: {schedule: cosine_with_minimum, minimum_learning_rate_fraction: 0.1}", None),
        ("train: {schedule: constant, warmup_ratio: 0.1}", None),
        ("train: {optimizer: AdamW}", "train.optimizer  got 'AdamW', expected adamw, "),
        ("train: {optimizer: paged_adamw_8bit}", None),
        ("train: {optimizer: adagrd}", "train.optimizer  got 'adagrd', expected adamw, "),
        ("train: {decay_fraction: 0.2}", "train.decay_fraction  only schedule wsd"),
        (
            "train: {minimum_learning_rate_fraction: 0.1}",
            "train.minimum_learning_rate_fraction  only schedules cosine_with_minimum and wsd have a minimum",
        ),
        ("train: {activation_checkpointing_every_layers: 1}", "train.activation_checkpointing_every_layers"),
        (
            "tracking: {project: finetune, tracker: mlflow}",
            "tracking.project  only trackers trackio and wandb",
        ),
        ("{train: {minimum_learning_rate_fraction: 0}, tracking: {wandb_mode: auto, tags: []}}", None),
        ("{adapter: {continue_from: x, dropout: 0.1}, model: {new_tokens: [a]}}", None),
        ("adapter: {continue_from: x, modules_to_save: [lm_head]}", None),
        ("adapter: {continue_from: x, dropout: 0.0, init: default, modules_to_save: []}", None),
        (
            "adapter: {init: orthogonal, rank: 5}",
            "adapter.init  orthogonal splits the rank in two halves, and rank 5 is odd",
        ),
        ("adapter: {init: orthogonal, rank: 6}", None),
        (
            "{adapter: {modules_to_save: [embed_tokens]}, model: {new_tokens: [a]}}",
            "adapter.modules_to_save  model.new_tokens",
        ),
        (
            "adapter: {target_modules: [k_proj, q_prj]}",
            "adapter.target_modules.1  no supported model has a module 'q_prj'; did you mean q_proj?",
        ),
        (
            "adapter: {target_modules: [self_attn.vproj]}",
            "adapter.target_modules.0  no supported model has a module 'self_attn.vproj'",
        ),
        (
            "adapter: {modules_to_save: [lm_heads]}",
            "adapter.modules_to_save.0  no supported model has a module 'lm_heads'",
        ),
        ("{adapter: {target_modules: [c_proj]}, model: {allow_untested: true}}", None),
        (
            "model: {rope_scaling: {type: linear, factor: 2, original_max_length_tokens: 64}}",
            "model.rope_scaling.original_max_length_tokens  only types yarn and llama3 have it",
        ),
        ("{model: {revision: main}}", None),
        ("{model: {base: /folder, revision: main}}", "model.revision  only a hub id has revisions"),
        ("{model: {base: {gguf: a.gguf}, revision: main}}", "model.revision  only a hub id has revisions"),
        (
            "model: {rope_scaling: {type: llama3, factor: 8, low_frequency_factor: 1}}",
            "model.rope_scaling.high_frequency_factor  missing: type llama3 needs",
        ),
        (
            "model: {rope_scaling: {type: llama3, factor: 8, low_frequency_factor: 4, high_frequency_factor: "
            "1}}",
            "model.rope_scaling.low_frequency_factor  got 4, expected less than high_frequency_factor (1)",
        ),
        (
            "model: {rope_scaling: {type: yarn, factor: 8, low_frequency_factor: 1}}",
            "model.rope_scaling.low_frequency_factor  only type llama3 has it; this one is yarn",
        ),
        (
            "model: {rope_scaling: {type: llama3, factor: 8, low_frequency_factor: 1, high_frequency_factor: "
            "4}}",
            None,
        ),
        ("model: {new_tokens: [a, b, a]}", "model.new_tokens.2  'a' is named twice"),
        ('model: {new_tokens: [a, " "]}', "model.new_tokens.1  got ' '; a token has at least one character"),
        (
            "tracking: {wandb_mode: offline}",
            "tracking.wandb_mode  only tracker wandb has it; this one is trackio",
        ),
        ("tracking: {tracker: wandb, wandb_mode: offline}", None),
        (
            "data: {supervise: last, train: [{path: a.txt, format: text}, {path: b.json, format: text}]}",
            "data.supervise  every source of data.train has format text, whose rows are learned whole; last",
        ),
        ("data: {supervise: all, train: [{path: a.txt, format: text}, {path: b.json, format: text}]}", None),
        (
            "data: {supervise: all, train: [{path: a.txt, format: text}, {path: b.json, format: "
            "prompt_completion}]}",
            None,
        ),
        (
            "data: {supervise: last, train: [{path: a.txt, format: text}, {path: b.json, format: alpaca}]}",
            None,
        ),
        (
            FILE % ("a.txt.gz", "alpaca"),
            "data.train.0.format  a .txt file has format text (or template, or auto); got alpaca",
        ),
        (
            FILE % ("'*.txt'", "alpaca"),
            "data.train.0.format  a .txt file has format text (or template, or auto); got alpaca",
        ),
        (
            FILE % ("a.txt", "alpaca"),
            "data.train.0.format  a .txt file has format text (or template, or auto); got alpaca",
        ),
        (FILE % ("a.txt", "text"), None),
        (
            "data: {evaluation: {sources: [{path: a.txt, format: alpaca}]}}",
            "data.evaluation.sources.0.format  a .txt file has format text",
        ),
    ],
)
def test_a_rule_holds_where_it_should(text: str, problem: str | None) -> None:
    """A broken rule gives one problem at the key to change, and a recipe that keeps it gives none."""
    problems = found(text)
    assert len(problems) == (problem is not None), problems
    assert problem is None or problems[0].startswith(problem)


@pytest.mark.parametrize("name", ["a/b--c", "a/b..c", "a/b.git", "a-/b", "a/b.", f"a/{'b' * 97}", "a/b/c"])
def test_no_hub_id_that_the_hub_refuses(tmp_path: Path, name: str) -> None:
    """What huggingface_hub refuses as a repository's name is a problem of the recipe."""
    from finetune.errors import RecipeError

    path = tmp_path / "r.yaml"
    path.write_text(f"model: {{base: {name}}}\ndata: {{train: [{{generated: orders}}]}}\n")
    with pytest.raises(RecipeError, match=r"model\.base  got .*expected a hub id"):
        load_recipe(path)


@pytest.mark.torch
def test_no_optimizer_of_transformers_is_a_near_miss() -> None:
    """Every name of transformers' OptimizerNames passes through, however like one of ours it looks."""
    from transformers.training_args import OptimizerNames

    for name in OptimizerNames:
        assert not found(f"train: {{optimizer: {name.value}}}")


@pytest.mark.parametrize("text", ["dataset: 'a b'", "dataset: ''", "dataset: a/b/c"])
def test_a_data_set_has_a_name(tmp_path: Path, text: str) -> None:
    """What can't name a data set of the hub is a problem of the recipe."""
    from finetune.errors import RecipeError

    path = tmp_path / "r.yaml"
    path.write_text(f"model: {{base: a/b}}\ndata: {{train: [{{{text}, format: text}}]}}\n")
    with pytest.raises(RecipeError, match=r"data\.train\.0\.dataset  got .*expected a data set of the hub"):
        load_recipe(path)


def test_a_wrong_value_is_no_missing_value(tmp_path: Path) -> None:
    """A knob that another needs, and that is there but wrong, is reported as wrong only, not as missing
    too."""
    from finetune.errors import RecipeError

    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {base: a/b}\ndata: {train: [{generated: orders}], evaluation: {fraction: 3}}\n"
        "train: {early_stopping: {}, evaluate_every: x}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.path for problem in caught.value.problems] == [
        "data.evaluation.fraction",
        "train.evaluate_every",
    ]
