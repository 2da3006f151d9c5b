"""Adapters that start by their rows: EVA, CorDA and LoRA-GA, beside peft's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import get_eva_state_dict
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from transformers import AutoModelForCausalLM

from data_prep.table.documents import Document
from finetune.engines.registry import ENGINES
from finetune.errors import ModelError
from finetune.models.adapters.adapter import attach, load_adapter
from finetune.models.adapters.corda import oriented_part
from finetune.models.adapters.from_rows import start_from_rows
from finetune.models.adapters.lora_ga import GAMMA, GRADIENT_BATCHES, GradientSums
from finetune.models.adapters.rows_read import LayerInputs, batches_of
from finetune.models.adapters.start import lora_layers, principal
from finetune.models.bases.folder import read_config
from finetune.models.bases.shapes import read_shape, start_numbers
from finetune.models.sizes import START_BATCH_TOKENS
from finetune.planning.activations import activations
from finetune.planning.data import load_of
from finetune.planning.job import job_of
from finetune.planning.memory import gradient_pass
from finetune.recipe.lock import START_HASH, read_lock
from finetune.recipe.rules.together import problem_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import AdapterSection
from finetune.training import build
from finetune.training.inputs import build_inputs
from finetune.training.reproduce import reproduce
from tests.support.adapters import make_adapter
from tests.support.kept import kept_bytes
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe, found

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def row_of(tokens: int, seed: int = 0) -> Document:
    """Random tokens, all learned."""
    generator = torch.Generator().manual_seed(seed)
    return Document(
        torch.randint(3, 200, (tokens,), generator=generator).tolist(), ((1, tokens, 1.0),), "a row"
    )


def with_gradients(recipe: Recipe) -> tuple[Any, dict[str, torch.Tensor]]:
    """The recipe's model at its start, and the gradients of the base's weights on the rows it starts by."""
    inputs = build_inputs(recipe)
    model: Any = build.build_model(recipe, inputs)
    plain = attach(build.load_base(recipe, inputs), AdapterSection(rank=4))
    sums = GradientSums(plain)
    with sums.summing():
        for batch in batches_of(build._rows_by_seed(recipe, inputs), most=GRADIENT_BATCHES):
            sums.add(batch, 0)
    return model, sums.of


def onto(directions: torch.Tensor) -> torch.Tensor:
    """The projection onto the space that rows span."""
    basis = torch.linalg.qr(directions.detach().double().T)[0]
    return basis @ basis.T


@pytest.mark.parametrize("rank", [4, 16])
def test_eva_s_directions_are_peft_s(tiny_base: Path, rank: int) -> None:
    """To rounding, of peft whose threshold is set so that it stops after the same two batches."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    section = AdapterSection(rank=rank, init="eva")
    mine = attach(base, section)
    rows = [row_of(START_BATCH_TOKENS // 8, seed) for seed in range(16)]
    start_from_rows(mine, section, rows, 0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        target_modules="all-linear",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
    )
    config.eva_config.tau = -1.0  # no two directions are farther apart
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    ids = torch.tensor([row.token_ids for row in rows])
    theirs = get_eva_state_dict(
        plain,
        [{"input_ids": ids[:8]}, {"input_ids": ids[8:]}],
        config,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    for name, directions in theirs.items():
        own = mine.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
        torch.testing.assert_close(own.detach(), directions, rtol=1e-4, atol=1e-4)


def test_corda_starts_at_peft_s_part_of_each_weight(tiny_base: Path) -> None:
    """To rounding, by one row: of several, peft gives each another weight."""
    row, section = row_of(256), AdapterSection(rank=4, alpha=6.0, init="corda")
    mine = attach(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), section)
    start_from_rows(mine, section, [row], 0)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=NAMES,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )
    preprocess_corda(plain, config, run_model=lambda: plain(input_ids=torch.tensor([row.token_ids])))
    theirs: Any = get_peft_model(plain, config)
    for name, layer in lora_layers(mine):
        own = (layer.lora_B["default"].trained @ layer.lora_A["default"].trained).detach()
        its = theirs.base_model.model.get_submodule(name)
        its = its.lora_B["default"].weight @ its.lora_A["default"].weight
        assert float((own - its.detach()).norm() / its.detach().norm()) < 1e-3, name


def test_corda_is_pissa_where_inputs_do_not_correlate() -> None:
    """Whatever their variance."""
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    a, b = oriented_part(weight, 7.0 * torch.eye(32), 4, 2.0)
    its_a, its_b = principal(weight, 4, 2.0)
    torch.testing.assert_close(b @ a, its_b @ its_a, rtol=1e-4, atol=1e-5)
    # The damping is part of the variance: A is divided by its root and more.
    torch.testing.assert_close(a.abs() * 1.01**0.5, its_a.abs(), rtol=1e-4, atol=1e-5)


def test_lora_ga_s_directions_are_peft_s_and_its_sizes_the_paper_s(make_recipe: MakeRecipe) -> None:
    """A lies in the space of the gradient's R largest directions, B in that of the R after them; all are as
    long as O^(1/4) / sqrt(GAMMA)."""
    recipe = make_recipe(adapter={"rank": 4, "init": "lora_ga"})
    model, gradients = with_gradients(recipe)
    config = LoraConfig(r=4, target_modules=NAMES, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    plain = AutoModelForCausalLM.from_pretrained(str(recipe.model.base), dtype=torch.float32)
    for name, gradient in gradients.items():
        plain.get_submodule(name)._peft_loraga_grad = gradient
    theirs: Any = get_peft_model(plain, config)
    for name, layer in lora_layers(model):
        its, size = theirs.base_model.model.get_submodule(name), len(gradients[name]) ** 0.5 / GAMMA
        a, b = layer.lora_A["default"].trained, layer.lora_B["default"].trained
        for own, other in ((a, its.lora_A["default"].weight), (b.T, its.lora_B["default"].weight.T)):
            torch.testing.assert_close(onto(own), onto(other), rtol=0, atol=1e-2)
            torch.testing.assert_close(own @ own.T, size * torch.eye(4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_what_a_start_takes_out_of_the_base_is_added_by_its_other_half(
    make_recipe: MakeRecipe, init: str
) -> None:
    """Before the first step the logits are the base's, whose weights are those of its files; no weight of the
    base has a gradient or trains."""
    recipe = make_recipe(adapter={"rank": 4, "init": init})
    model: Any = build.build_model(recipe, build_inputs(recipe))
    plain = AutoModelForCausalLM.from_pretrained(str(recipe.model.base), dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(
        model.eval()(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=2e-5
    )
    for name, weight in model.get_base_model().named_parameters():
        assert weight.grad is None
        assert weight.requires_grad == name.endswith("trained")
        if "lora_" not in name:
            assert torch.equal(weight, plain.get_parameter(name.replace(".base_layer", "")))


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_the_lock_has_the_start_s_hash_and_a_run_reproduces(make_recipe: MakeRecipe, init: str) -> None:
    """Bit for bit, from the same start."""
    folder = start(make_recipe(adapter={"rank": 4, "init": init}, train=EXACT | {"max_steps": 2}))
    again = reproduce(folder, read_lock(folder.lock_path), despite=frozenset(), folder=None)
    assert len(read_lock(folder.lock_path).final[START_HASH]) == 32
    assert again.same_weights
    assert again.same_start


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_what_is_gathered_is_what_the_plan_says(make_recipe: MakeRecipe, init: str) -> None:
    """Numbers of the gradients, and of the covariances of inputs that layers share."""
    recipe = make_recipe(adapter={"rank": 4, "init": init})
    shape = read_shape(read_config(Path(str(recipe.model.base))))
    if init == "lora_ga":
        gathered = sum(gradient.numel() for gradient in with_gradients(recipe)[1].values())
    else:
        plain = AutoModelForCausalLM.from_pretrained(str(recipe.model.base))
        sizes: dict[str, int] = {}
        with LayerInputs(
            attach(plain, AdapterSection(rank=4)), lambda name, x: sizes.update({name: x.shape[1] ** 2})
        ) as inputs:
            inputs.read(row_of(8))
        gathered = sum(sizes.values())
    assert start_numbers(shape, recipe.adapter) == gathered


def test_lora_ga_s_pass_keeps_what_the_plan_says(make_recipe: MakeRecipe) -> None:
    """What autograd saves of a batch beside the weights, within a tenth."""
    recipe = make_recipe(adapter={"rank": 4, "init": "lora_ga"})
    inputs = build_inputs(recipe)
    model = attach(build.load_base(recipe, inputs), AdapterSection(rank=4))
    sums, rows = GradientSums(model), [row_of(64, seed) for seed in range(4)]
    with sums.summing(), kept_bytes((*model.parameters(), *model.buffers())) as held:
        sums.add(rows, 0)
    shape = read_shape(read_config(Path(str(recipe.model.base))))
    job = job_of(recipe, shape, load_of(recipe), "fp32", gpus=1, device="cpu")
    read = gradient_pass(job, sums.tokens)
    loss = 4 * sums.tokens * shape.width
    assert activations(read) == pytest.approx(sum(held.values()) - loss, rel=0.1)


def test_a_long_row_pads_no_short_ones(make_recipe: MakeRecipe) -> None:
    """LoRA-GA's passes read a batch's tokens and a row's at most, however the rows' lengths differ."""
    recipe = make_recipe(adapter={"rank": 4, "init": "lora_ga"})
    model = attach(build.load_base(recipe, build_inputs(recipe)), AdapterSection(rank=4))
    (rows,) = batches_of([*(row_of(10, seed) for seed in range(102)), row_of(200)])
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    sums = GradientSums(model)
    with sums.summing():
        sums.add(rows, 0)
    assert sum(read) >= sums.tokens == 1220
    assert max(read) <= START_BATCH_TOKENS + 200


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("eva", r"init eva: the rows have 5 tokens, and adapter\.rank is 16, which asks for as many"),
        ("lora_ga", r"init lora_ga: the rows have 5 tokens, and adapter\.rank is 16, which asks for twice"),
    ],
)
def test_a_start_needs_as_many_tokens_as_directions(make_recipe: MakeRecipe, init: str, message: str) -> None:
    """One message."""
    recipe = make_recipe(adapter={"rank": 16, "init": "default"})
    inputs = build_inputs(recipe)
    section = AdapterSection(rank=16, init=init)
    model = attach(build.load_base(recipe, inputs), section)
    with pytest.raises(ModelError, match=message):
        start_from_rows(model, section, [row_of(5)], 0)


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_inputs_that_are_not_finite_are_refused(tiny_base: Path, init: str) -> None:
    """By the first layer that reads one."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    base.model.layers[1].mlp.up_proj.weight.data[0] = torch.inf
    model = attach(base, AdapterSection(rank=4, init=init))
    with pytest.raises(
        ModelError, match=r"what the rows put into model\.layers\.1\.mlp\.down_proj is not fin"
    ):
        start_from_rows(model, AdapterSection(rank=4, init=init), [row_of(40)], 0)


def test_eva_needs_as_many_inputs_as_a_layer_s_rank(tiny_base: Path) -> None:
    """A rank beyond a layer's inputs is refused by its name; one that other layers have is nothing to it."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    width, inner = base.config.hidden_size, base.config.intermediate_size
    rows = [row_of(inner, seed) for seed in range(8)]
    section = AdapterSection(rank=4, init="eva", rank_pattern={"down_proj": width + 1})
    start_from_rows(attach(base, section), section, rows, 0)
    section = AdapterSection(rank=width + 1, init="eva", target_modules=["q_proj"])
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_base), section)
    with pytest.raises(ModelError, match=rf"q_proj has {width} inputs, and a rank of {width + 1} asks"):
        start_from_rows(model, section, rows, 0)


@pytest.mark.parametrize(("init", "rank"), [("corda", 64), ("lora_ga", 20)])
def test_a_start_needs_matrices_with_as_many_directions(tiny_base: Path, init: str, rank: int) -> None:
    """LoRA-GA twice the rank; the message names the matrix."""
    section = AdapterSection(rank=rank, init=init)
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_base), section)
    with pytest.raises(ModelError, match=rf"rank is {rank}, and .*k_proj is a matrix of 32 x 64"):
        start_from_rows(model, section, [row_of(64)], 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("adapter: {init: eva, use_dora: true}", "adapter.use_dora  DoRA was not shown with adapter.init eva"),
        ("adapter: {init: eva, target_modules: [lm_head]}", "adapter.target_modules  adapter.init eva is for"),
        ("{adapter: {init: eva}, train: {sequence_parallel_size: 2}}", "adapter.init  eva reads whole rows"),
        ("adapter: {init: corda, method: qlora}", "adapter.init  corda takes its start out of the base before"),
        ("adapter: {init: lora_ga, dropout: 0.1}", "adapter.dropout  adapter.init lora_ga starts at what it takes"),
        ("adapter: {init: corda, rank_pattern: {q_proj: 2}}", "adapter.rank_pattern  adapter.init corda gives all"),
        (
            "{adapter: {init: lora_ga}, train: {riemannian_damping: 0.01}}",
            "train.riemannian_damping  half of the adapter that adapter.init lora_ga makes is frozen",
        ),
        ("{adapter: {init: lora_ga}, objective: {kind: dpo}}", "adapter.init  lora_ga follows the gradients of rows"),
        ("{adapter: {init: corda, continue_from: x}}", "adapter.init  the adapter that is continued"),
    ],
)  # fmt: skip
def test_a_start_by_rows_is_refused_where_it_was_not_shown(text: str, problem: str) -> None:
    """By name."""
    assert any(line.startswith(problem) for line in found(text)), found(text)


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_a_start_by_rows_needs_whole_layers_that_nobody_else_uses(make_recipe: MakeRecipe, init: str) -> None:
    """Engines that cut weights up, and runs that share a base, refuse it."""
    recipe = make_recipe(adapter={"init": init})
    for engine in ENGINES:
        refused = f"adapter.init {init}" in str(engine.problem(recipe))
        assert refused == (engine.takes_over or engine.shards_weights)
    assert f"adapter.init: {init} " in str(problem_of(recipe))


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_peft_s_adapter_of_a_base_that_only_its_rows_tell_is_refused(
    tiny_base: Path, tmp_path: Path, init: str
) -> None:
    """peft would load LoRA-GA's beside a base from which nothing was taken."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    config = target.adapter / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"init_lora_weights": true', f'"init_lora_weights": "{init}"')
    )
    with pytest.raises(
        ModelError, match=f"init_lora_weights is {init}: this is an adapter of a base without"
    ):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_base), target.adapter)
