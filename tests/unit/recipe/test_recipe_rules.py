"""Each rule between keys holds where it should, and only there."""

from pathlib import Path

import pytest

from finetune.recipe.load import load_recipe
from finetune.recipe.schema.optimizers import KNOWN
from tests.support.recipes import found

EVALUATION = "data: {evaluation: {fraction: 0.1}}"
FILE = "{data: {train: [{path: %s, format: %s}]}}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: {evaluate_every: 5}", "train.evaluate_every  needs rows to evaluate on"),
        (
            "train: {sequence_parallel_size: 2}",
            "train.sequence_parallel_size  cuts packs among processes, and rows aren't packed",
        ),
        ("{train: {sequence_parallel_size: 2}, data: {pack_length_tokens: 2048}}", None),
        (
            "{train: {sequence_parallel_size: 2}, data: {pack_length_tokens: 8192}, objective: {kind: dpo}}",
            "train.sequence_parallel_size  is for objective supervised without a head",
        ),
        (
            "{train: {sequence_parallel_size: 2, neftune_alpha: 5}, data: {pack_length_tokens: 2048}}",
            "train.sequence_parallel_size  cuts documents, and train.neftune_alpha draws noise",
        ),
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
        ("adapter: {method: full, layers: last 2}", "adapter.layers  method full"),
        ("adapter: {quantization: int8}", "adapter.quantization  only method qlora quantises"),
        ("adapter: {double_quantization: true}", "adapter.double_quantization  only method qlora"),
        ("adapter: {method: qlora, double_quantization: false}", None),
        (
            "adapter: {method: qlora, quantization: int8, double_quantization: true}",
            "adapter.double_quantization  int8 has one scale per row",
        ),
        ("adapter: {init: loftq}", "adapter.init  loftq starts at what quantisation took"),
        ("adapter: {init: loftq, method: qlora, dropout: 0.1}", None),
        ("adapter: {init: pissa, method: qlora}", "adapter.init  pissa takes its start out of the base"),
        ("adapter: {init: olora, dropout: 0.1}", "adapter.dropout  adapter.init olora starts at"),
        ("adapter: {init: pissa_niter_4, use_dora: true}", "adapter.use_dora  DoRA was not shown"),
        (
            "adapter: {init: pissa, target_modules: [q_proj, lm_head]}",
            "adapter.target_modules  adapter.init pissa is for",
        ),
        ("adapter: {layers: [3, 3]}", "adapter.layers  named twice: 3"),
        (
            "adapter: {layers: last 2, target_modules: [lm_head]}",
            "adapter.target_modules.0  lm_head is in none",
        ),
        (
            "adapter: {layers: [0], target_modules: [model.layers.1.self_attn.q_proj]}",
            "adapter.target_modules.0  model.layers.1.self_attn.q_proj names a layer",
        ),
        ("{adapter: {modules_to_save: [embed_tokens, lm_head]}, model: {new_tokens: [a]}}", None),
        (
            "{adapter: {modules_to_save: [embed_tokens]}, model: {new_tokens: [a]}}",
            "adapter.modules_to_save  model.new_tokens adds rows to embedding and head: name lm_head as well",
        ),
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
        ("train: {optimizer: prodigy}", "train.optimizer  got 'prodigy', expected adamw, "),
        ("train: {optimizer: adam_mini}", "train.optimizer  got 'adam_mini', expected adamw, "),
        ("train: {optimizer: galore_adamw}", "train.optimizer  galore_adamw projects gradients"),
        ("train: {optimizer: apollo_adamw}", "train.optimizer  apollo_adamw projects gradients"),
        ("train: {optimizer: lomo}", "train.optimizer  lomo updates each weight within"),
        ("train: {optimizer: schedule_free_sgd}", "train.optimizer  schedule_free_sgd evaluates"),
        ("adapter: {target_modules: [all]}", "adapter.target_modules.0  no model has a module 'all'; write"),
        ("adapter: {target_modules: [all-linear]}", "adapter.target_modules.0  no model has a module 'all-l"),
        ("train: {adam_betas: [0.9, 0.95], adam_epsilon: 1e-5}", None),
        (
            "train: {optimizer: sgd, adam_betas: [0.9, 0.999]}",
            "train.adam_betas  optimizer sgd takes no betas",
        ),
        (
            "train: {optimizer: lion, adam_epsilon: 1e-8}",
            "train.adam_epsilon  optimizer lion takes no epsilon",
        ),
        ("train: {optimizer: lion, adam_betas: [0.9, 0.99]}", None),
        ("train: {warmup_steps: 3, warmup_ratio: 0.03}", "train.warmup_ratio  warmup_steps and warmup_ratio"),
        ("train: {warmup_steps: 3, warmup_ratio: 0}", None),
        ("train: {schedule: step, step_decay_factor: 0.5, step_decay_every: 10%}", None),
        ("train: {step_decay_factor: 0.85}", "train.step_decay_factor  only schedule step has it"),
        ("train: {schedule: step, step_decay_every: never}", "train.step_decay_every  a learning rate that"),
        ("{train: {loraplus_lr_ratio: 16}, adapter: {method: full}}", "train.loraplus_lr_ratio  method full"),
        (
            "{train: {riemannian_damping: 0.01}, adapter: {method: full}}",
            "train.riemannian_damping  method full",
        ),
        ("{train: {riemannian_damping: 0.01}, adapter: {init: olora}}", "train.riemannian_damping  half of"),
        ("train: {embedding_learning_rate: 1e-5}", "train.embedding_learning_rate  neither embed_tokens"),
        ("{train: {embedding_learning_rate: 1e-5}, model: {new_tokens: [a]}}", None),
        ("{train: {embedding_learning_rate: 1e-5}, adapter: {modules_to_save: [model.embed_tokens]}}", None),
        ("{train: {weights_dtype: bf16}, adapter: {method: full}}", None),
        ("train: {weights_dtype: bf16}", "train.weights_dtype  method lora trains an adapter"),
        (
            "{train: {weights_dtype: bf16, precision: fp32}, adapter: {method: full}}",
            "train.weights_dtype  weights in bf16 compute in bf16; train.precision is fp32",
        ),
        (
            "{train: {weights_dtype: bf16, optimizer: lion}, adapter: {method: full}}",
            "train.weights_dtype  only optimizer adamw",
        ),
        (
            "{train: {evaluate_every: never, early_stopping: {}}, data: {evaluation: {fraction: 0.1}}}",
            "train.early_stopping  looks at evaluations during training",
        ),
        ("train: {evaluate_every: never, log_every: 50 steps, save_every: 0.5 epochs}", None),
        (
            "{train: {max_steps: 9, save_every: 1 epoch}, data: {streaming: {}}}",
            "train.save_every  a stream's epochs have no known length",
        ),
        ("{train: {max_steps: 9, save_every: 10%}, data: {streaming: {}}}", None),
        ("train: {optimizer: adagrd}", "train.optimizer  got 'adagrd', expected adamw, "),
        ("train: {decay_fraction: 0.2}", "train.decay_fraction  only schedule wsd"),
        (
            "train: {minimum_learning_rate_fraction: 0.1}",
            "train.minimum_learning_rate_fraction  only schedules cosine_with_minimum and wsd have a minimum",
        ),
        ("train: {activation_checkpointing_every_layers: 1}", "train.activation_checkpointing_every_layers"),
        (
            "train: {activation_checkpointing_keep_attention: true}",
            "train.activation_checkpointing_keep_attention  needs train.activation_checkpointing: true",
        ),
        (
            "train: {activation_offloading: true}",
            "train.activation_offloading  needs train.activation_checkpointing: true",
        ),
        ("train: {activation_checkpointing: true, activation_offloading: true}", None),
        ("{adapter: {dropout: 0.0}, train: {mlp_tile_tokens: 4096}}", None),
        (
            "{adapter: {dropout: 0.1, target_modules: [up_proj]}, train: {mlp_tile_tokens: 4096}}",
            "train.mlp_tile_tokens  needs adapter.dropout: 0.0; and down_proj and gate_proj in "
            "adapter.target_modules",
        ),
        (
            "{adapter: {method: full}, train: {mlp_tile_tokens: 4096}}",
            "train.mlp_tile_tokens  needs adapter.method lora or qlora (it is full)",
        ),
        (
            "tracking: {project: finetune, tracker: swanlab}",
            "tracking.project  for trackio, wandb, mlflow and opentelemetry only; this one is swanlab",
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
            "tracking.wandb_mode  for wandb only; this one is trackio",
        ),
        ("tracking: {tracker: wandb, wandb_mode: offline}", None),
        ("tracking: {tracker: [tensorboard, wandb], wandb_mode: offline, project: x}", None),
        (
            "tracking: {tracker: [tensorboard, trackio], notes: x}",
            "tracking.notes  for wandb and mlflow only; these are tensorboard and trackio",
        ),
        ("tracking: {tracker: [wandb, wandb]}", "tracking.tracker.1  wandb is named twice"),
        ("tracking: {tracker: [none, wandb]}", "tracking.tracker.0  none stands alone"),
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
    """Every name of transformers' OptimizerNames passes through, however like one of ours it looks, but for those
    that are refused with a reason of their own."""
    from transformers.training_args import OptimizerNames

    for name in OptimizerNames:
        reason = KNOWN[name.value].refused
        expected = [f"train.optimizer  {name.value} {reason}"] if reason else []
        assert found(f"train: {{optimizer: {name.value}, schedule: constant}}") == expected


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
