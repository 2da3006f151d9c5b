"""finetune plan: its closed forms beside what torch keeps, what it says, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.cli import app as command_line
from finetune.cli.plan import closing
from finetune.engines import registry
from finetune.engines.ddp import DDP
from finetune.engines.fsdp2 import FSDP2
from finetune.engines.single import SINGLE
from finetune.models.adapters.joint import AdapterBatch, JointDecoder
from finetune.models.bases.locate import read_config, resolve_base
from finetune.models.bases.shapes import read_shape
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.kernels.fp8 import fp8_of
from finetune.models.load import load_model
from finetune.planning.activations import activations, stream_bytes
from finetune.planning.changes import changes_of, cheapest_change
from finetune.planning.data import assumed, load_of
from finetune.planning.job import Job, job_of, together
from finetune.planning.longest import longest_rows
from finetune.planning.memory import linear_bytes, linear_numbers, memory_of, on_the_host
from finetune.planning.plan import plan
from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema import Recipe
from tests.support.families import save_tiny_family
from tests.support.kept import kept_bytes
from tests.support.processes import trainer_of
from tests.support.recipes import MakeRecipe

LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "vocab_size": 128256, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


def job_for(recipe: Recipe) -> Job:
    shape = read_shape(read_config(Path(str(recipe.model.base))))
    return job_of(recipe, shape, load_of(recipe), recipe.train.precision, gpus=1, device="cpu")


def kept_by_torch(recipe: Recipe, folder: Path) -> tuple[float, int]:
    """Bytes that autograd saves in the forward pass of the first epoch's heaviest micro-batch, and its
    tokens."""
    trainer = trainer_of(recipe, folder, None)
    model: Any = trainer.model
    model.train()
    largest = (0.0, 0)
    for batch, _ in zip(trainer.get_train_dataloader(), range(20), strict=False):
        with trainer.accelerator.autocast(), kept_bytes((*model.parameters(), *model.buffers())) as held:
            trainer.compute_loss(model, dict(batch), num_items_in_batch=10)
        largest = max(largest, (float(sum(held.values())), batch["input_ids"].numel()))
    return largest


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"dropout": 0.1}},
        {"adapter": {"use_dora": True}},
        {"adapter": {"use_dora": True, "dropout": 0.1}},
        {"adapter": {"use_dora": True}, "train": {"mlp_tile_tokens": 32}},
        {"adapter": {"method": "qlora"}},
        {"adapter": {"method": "qlora", "quantization": "int8"}},
        {"train": {"mlp_tile_tokens": 32}},
        {"adapter": {"layers": "last 1"}},
        {"adapter": {"layers": [0]}},
        {"adapter": {"init": "pissa"}},
        {"adapter": {"method": "full"}},
        {"adapter": {"method": "full"}, "train": {"precision": "bf16", "weights_dtype": "bf16"}},
        {"data": {"pack_length_tokens": None}, "train": {"micro_batch_size": 4}},
    ],
    ids=str,
)
def test_the_closed_form_is_what_torch_keeps(
    sections: dict[str, Any], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Activations are within a tenth of the storages that autograd saves, loss aside, for each kind of
    training."""
    base = {"data": {"pack_length_tokens": 128}, "adapter": {"rank": 4}, "train": {"micro_batch_size": 1}}
    merged = {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections}
    recipe = make_recipe(**merged)
    job = job_for(recipe)
    kept, tokens = kept_by_torch(recipe, tmp_path / "checkpoints")
    assert job.tokens == tokens
    loss = 4 * job.supervised * (job.shape.vocabulary if job.method == "full" else job.shape.width)
    assert activations(job) == pytest.approx(kept - loss, rel=0.1)


@pytest.mark.parametrize("adapter", [{}, {"double_quantization": False}, {"quantization": "int8"}], ids=str)
def test_a_quantised_base_takes_what_the_plan_says(adapter: dict[str, Any], make_recipe: MakeRecipe) -> None:
    """Bytes of the loaded parameters and of their scales, to a hundredth."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    recipe = make_recipe(adapter={"method": "qlora"} | adapter)
    base = resolve_base(recipe.model)
    model = load_model(base, dtype=torch.float32, quantization=recipe.adapter.base_quantization)
    held = 0
    for parameter in model.parameters():
        state, scales = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
        blocks = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
        held += sum(part.nbytes for part in (parameter, *blocks, *([] if scales is None else [scales])))
    assert memory_of(job_for(recipe)).weights == pytest.approx(held, rel=0.01)


def test_a_base_in_fp8_takes_what_the_plan_says(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Its own weights, and beside them 8-bit ones with their scales."""
    recipe = make_recipe(train={"base_arithmetic": "fp8"})
    plain, rounded = (memory_of(job_for(one)).weights for one in (make_recipe(), recipe))
    weights = map(fp8_of, trainer_of(recipe, tmp_path, None).model.modules())
    parts = [part for weight in weights if weight is not None for part in vars(weight).values()]
    held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    assert rounded - plain == sum(held.values())


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"dropout": 0.1}},
        {"adapter": {"method": "full"}},
        {"data": {"pack_length_tokens": None}},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen3", "phi3", "granite", "olmo2"])
def test_the_closed_form_of_a_family_is_what_torch_keeps(
    family: str, sections: dict[str, Any], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Within a tenth, where norms of heads and packed projections keep more."""
    folder = save_tiny_family(tmp_path / "base", family, defaults=True)
    base = {"model": {"base": str(folder)}, "data": {"pack_length_tokens": 128}, "adapter": {"rank": 4}}
    merged = {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections}
    recipe = make_recipe(
        train={"micro_batch_size": 1 if merged["data"]["pack_length_tokens"] else 4}, **merged
    )
    job = job_for(recipe)
    kept, tokens = kept_by_torch(recipe, tmp_path / "checkpoints")
    assert job.tokens == tokens
    loss = 4 * job.supervised * (job.shape.vocabulary if job.method == "full" else job.shape.width)
    assert activations(job) == pytest.approx(kept - loss, rel=0.1)


def a_70b(folder: Path, **train: Any) -> Path:
    """A recipe for a 70B shape of which only config.json is here."""
    base = folder / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(LLAMA_70B))
    (folder / "rows.jsonl").write_text("")
    path = folder / "large.yaml"
    lines = "".join(f", {name}: {json.dumps(value)}" for name, value in train.items())
    path.write_text(
        f"model: {{base: {base}}}\nadapter: {{method: lora, rank: 16}}\n"
        f"data: {{train: [{{path: {folder / 'rows.jsonl'}, format: messages}}], max_length_tokens: 2048, "
        "pack_length_tokens: 4096}\n"
        f"train: {{max_steps: 100, global_batch_size: 8{lines}}}\n"
    )
    return path


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["finetune", "plan", *words])
    code = command_line.run()
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_70b_recipe_is_planned_from_its_config_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 8 GPUs of 80 GiB ddp does not fit and says what would; fsdp2 does; assumptions are named; no torch
    is loaded."""
    path = a_70b(tmp_path)
    words = [
        str(path),
        "--gpus",
        "8",
        "--gpu-memory",
        "80GiB",
        "--launch",
        "ddp",
        "--tokens-per-second",
        "5000",
    ]
    code, shown, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "assumed" in shown
    assert "ddp fits with" in shown
    assert "steps               100, 3,276,800 tokens" in shown
    assert "0.18 hours at 5,000 tokens/s" in shown
    _, shown, _ = run(monkeypatch, capsys, *words, "--json")
    plan = json.loads(shown)
    ways = {way["name"]: way for way in plan["ways"]}
    assert ways["ddp"]["memory"]["weights"] == pytest.approx(141.1e9, rel=0.01)
    assert ways["ddp"]["fits"] is False
    assert ways["fsdp2, checkpointing"]["fits"] is True
    assert ways["fsdp2"]["memory"]["weights"] < ways["ddp"]["memory"]["weights"] / 4
    assert plan["fastest"].startswith("fsdp2")
    program = (
        f"import sys\nsys.argv = {['finetune', 'plan', *words]!r}\nfrom finetune.cli.app import run\nassert "
        "run() == 0\n"
    )
    subprocess.run(
        [sys.executable, "-c", program + "assert 'torch' not in sys.modules"], check=True, capture_output=True
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpu-memory", "80"], "expected a number and a unit"),
        (["--gpus", "2", "--launch", "zero4"], "expected one of ddp, zero1"),
        (["--gpus", "2", "train.precision=fp16"], "no engine trains this recipe on 2 GPUs: "),
        (
            ["train.sequence_parallel_size=2"],
            "no engine trains this recipe on 1 GPU: train.sequence_parallel_size: 2: the processes of single",
        ),
        (
            ["--gpus", "8", "train.sequence_parallel_size=3"],
            "train.sequence_parallel_size 3 does not divide 8 processes",
        ),
    ],
)
def test_what_can_not_be_planned_is_refused(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One message, exit 2."""
    code, _, error = run(monkeypatch, capsys, str(a_70b(tmp_path)), *words)
    assert code == 2
    assert expected in error


def test_a_gpu_is_planned_with_room_to_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What takes all of it but a hundredth doesn't fit: drivers keep some, and gaps do; NCCL has buffers
    beside other GPUs."""
    _, shown, _ = run(monkeypatch, capsys, str(a_70b(tmp_path)), "--gpus", "8", "--json")
    ddp = next(way for way in json.loads(shown)["ways"] if way["name"] == "ddp")
    words = ["--gpus", "8", "--json", "--gpu-memory"]
    for factor, fits in ((1.01, False), (1.06, True)):
        size = f"{ddp['total'] / 1e9 * factor:.3f}GB"
        _, shown, _ = run(monkeypatch, capsys, str(a_70b(tmp_path)), *words, size)
        found = next(way for way in json.loads(shown)["ways"] if way["name"] == "ddp")
        assert found["fits"] is fits
    _, alone, _ = run(monkeypatch, capsys, str(a_70b(tmp_path)), "--json")
    assert ddp["memory"]["overhead"] == json.loads(alone)["ways"][0]["memory"]["overhead"] + 1e9


def test_a_quantised_base_is_whole_at_first_where_its_layers_can_not_be_shared(
    make_recipe: MakeRecipe,
) -> None:
    """With a rank below the number of processes, of which some would have no share of the adapter, the smallest
    of several; or where the adapter's start needs the layers' weights."""
    job = job_for(make_recipe(adapter={"method": "qlora", "rank": 4}, data={"pack_length_tokens": 128}))
    job = replace(job, shape=replace(job.shape, layers=32), engine=FSDP2)
    few, many = (memory_of(replace(job, processes=processes)).weights for processes in (4, 8))
    assert few < many
    whole = memory_of(replace(job, engine=SINGLE, processes=1)).weights
    assert many == pytest.approx(whole)
    for adapter in ({"rank": 16, "rank_pattern": {"q_proj": 2}}, {"rank": 16, "use_dora": True}):
        job = job_for(make_recipe(adapter={"method": "qlora"} | adapter, data={"pack_length_tokens": 128}))
        job = replace(job, shape=replace(job.shape, layers=32), engine=FSDP2, processes=4)
        assert memory_of(job).weights == pytest.approx(whole, rel=1e-3)


def test_a_pack_that_is_shared_takes_as_many_times_less(make_recipe: MakeRecipe) -> None:
    """Of activations; what is learned may lie in one part, and all else stays."""
    sections = {"adapter": {"rank": 4}, "data": {"pack_length_tokens": 128}}
    whole = job_for(make_recipe(**sections))
    shared = job_for(make_recipe(**sections, train={"sequence_parallel_size": 2}))
    assert (shared.tokens, shared.supervised) == (whole.tokens // 2, min(whole.supervised, shared.tokens))
    assert memory_of(shared).weights == memory_of(whole).weights
    assert activations(shared) == pytest.approx(activations(whole) / 2)


def test_layer_inputs_that_stay_are_what_torch_keeps(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Under recomputation, within a tenth: one a layer, of which all but two are the host's where it keeps
    them."""
    adapter, data = {"rank": 4}, {"pack_length_tokens": 128}
    train = {"micro_batch_size": 1, "activation_checkpointing": True}
    recipe = make_recipe(adapter=adapter, data=data, train=train)
    job = job_for(recipe)
    kept, tokens = kept_by_torch(recipe, tmp_path / "checkpoints")
    loss = 4 * job.supervised * job.shape.width
    assert tokens == job.tokens
    assert activations(job) == pytest.approx(kept - loss, rel=0.1)
    deep = replace(job, shape=replace(job.shape, layers=8))
    offloaded = replace(deep, offload=True)
    assert activations(deep) - activations(offloaded) == 6 * stream_bytes(job)
    assert on_the_host(offloaded) == (8 * stream_bytes(job), "pinned, for layers' inputs")
    started = replace(job, init="lora_ga", start_numbers=1000, device="gpu")
    assert on_the_host(started) == (4000, "for the adapter's start, before step 1")


def test_the_longest_row_is_the_longest(make_recipe: MakeRecipe) -> None:
    """It fits, and 1,024 tokens more don't; what is for long rows makes it longer each time."""
    job = job_for(make_recipe(adapter={"rank": 4}, data={"pack_length_tokens": 128}))
    memory = 2_000_000_000
    found = longest_rows(job, memory)
    learned = job.supervised / job.tokens
    fits = []
    for tokens in (found[0].tokens, found[0].tokens + 1024):
        row = replace(job, tokens=tokens, supervised=round(learned * tokens), row_tokens=tokens, packed=True)
        fits.append(memory_of(row).total <= 0.95 * memory)
    assert fits == [True, False]
    plain, long = found[0].tokens, found[1].tokens
    assert plain > 0
    assert long > 2 * plain
    assert "activation_offloading" in found[1].what
    assert found[2].what.startswith("adapter.method: qlora")
    assert longest_rows(job, 1_000_000)[0].tokens == 0


def test_a_plan_says_the_longest_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the recipe is, and with what long rows have; and what the host keeps."""
    path = a_70b(tmp_path, activation_checkpointing=True, activation_offloading=True)
    _, shown, _ = run(monkeypatch, capsys, str(path), "--gpu-memory", "192GB")
    assert "positions) as the recipe is" in shown
    assert "mlp_tile_tokens: 4096" in shown
    assert "the host's memory   5.37 GB a process, pinned, for layers' inputs" in shown


def test_sharding_divides_what_it_says(make_recipe: MakeRecipe) -> None:
    """ZeRO-1 divides states, ZeRO-2 gradients too, FSDP2 weights as well; checkpointing leaves one stream a
    layer."""
    recipe = make_recipe(data={"pack_length_tokens": 128}, train={"micro_batch_size": 1})
    one = job_for(recipe)
    engines = {engine.name: engine for engine in registry.of_several()}
    several = {name: memory_of(replace(one, engine=engine, processes=4)) for name, engine in engines.items()}
    alone = memory_of(one)
    assert several["ddp"] == alone
    assert several["zero1"].optimizer == pytest.approx(alone.optimizer / 4)
    assert several["zero2"].gradients == pytest.approx(alone.gradients / 4)
    deep = replace(one, shape=replace(one.shape, layers=8))
    shared = memory_of(replace(deep, engine=engines["fsdp2"], processes=4))
    assert shared.weights < memory_of(deep).weights
    full = make_recipe(adapter={"method": "full", "rank": 4}, data={"pack_length_tokens": 128})
    half = replace(job_for(full), number_bytes=2, processes=4)
    in_16_bit = [memory_of(replace(half, engine=engines[name])) for name in ("ddp", "zero1")]
    assert in_16_bit[1].adapter == pytest.approx(in_16_bit[0].adapter / 2, rel=0.01)
    every = [activations(replace(deep, checkpoint_every=count)) for count in (0, 2, 1)]
    assert every == sorted(every, reverse=True)
    assert assumed(recipe, "no rows").micro_batch_tokens == 128


def test_what_adapters_keep_together_is_what_torch_keeps(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """In one pass through the base, within a tenth."""
    data, train = {"pack_length_tokens": 128}, {"micro_batch_size": 1, "precision": "fp32"}
    recipe = make_recipe(data=data, train=train, adapter={"rank": 4})
    one = job_for(recipe)
    trainers = [trainer_of(recipe, tmp_path / name, None) for name in ("a", "b")]
    base = load_model(resolve_base(recipe.model), dtype=torch.float32, attention=PER_DOCUMENT)
    decoder = JointDecoder(base)
    for name, trainer in zip("ab", trainers, strict=True):
        decoder.join(name, trainer.model)
    batch = max(trainers[0].get_train_dataloader(), key=lambda batch: batch["input_ids"].numel())
    held_besides = [*base.parameters(), *base.buffers(), *(w for t in trainers for w in t.model.parameters())]
    with kept_bytes(held_besides) as held:
        decoder([AdapterBatch(name, batch, 0) for name in "ab"])
    two = together(replace(one, tokens=batch["input_ids"].numel()), 2)
    assert activations(two) == pytest.approx(float(sum(held.values())), rel=0.1)


def test_adapters_that_train_together_are_planned(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each has its own weights, gradients and states, whole with fsdp2 too, which shares out the base's
    layers; fewer at a time are what would make it fit; and what can't be trained together isn't planned
    so."""
    one = job_for(make_recipe(data={"pack_length_tokens": 128}, train={"micro_batch_size": 1}))
    four, deep = together(one, 4), replace(one, shape=replace(one.shape, layers=8))
    alone, beside = memory_of(one), memory_of(four)
    for part in ("adapter", "gradients", "optimizer"):
        assert getattr(beside, part) == pytest.approx(4 * getattr(alone, part)), part
    assert (beside.weights, beside.logits) == pytest.approx((alone.weights, alone.logits))
    whole, shared = (
        memory_of(replace(together(deep, 4), engine=engine, processes=4)) for engine in (DDP, FSDP2)
    )
    assert (shared.adapter, shared.optimizer) == (whole.adapter, whole.optimizer)
    assert shared.weights == pytest.approx(whole.weights - linear_bytes(deep.shape, None, 4) / 2)
    quantised = replace(together(deep, 4), method="qlora", quantization="nf4", processes=4)
    whole, shared = (memory_of(replace(quantised, engine=engine)) for engine in (DDP, FSDP2))
    assert shared.weights == pytest.approx(whole.weights - linear_numbers(deep.shape) / 4), "without scales"
    change = cheapest_change(four, [SINGLE], int(memory_of(together(one, 2)).total / 0.94))
    assert change is not None
    assert change.what == "--max-adapters 2"
    assert not any("--max-adapters 1" in what for what, _ in changes_of(four, [SINGLE])), "another plan"

    large = str(a_70b(tmp_path))
    words = ["--gpus", "8", "--gpu-memory", "80GiB", "--adapters", "2"]
    code, said, _ = run(monkeypatch, capsys, large, "--json", *words)
    assert code == 0
    assert {way["engine"]: way["fits"] for way in json.loads(said)["ways"] if way["checkpointing"]} == {
        "ddp": False,
        "fsdp2": True,
    }
    eighths = ["train.optimizer=adamw_8bit", "--json"]  # which fsdp2 alone can't have
    code, said, _ = run(monkeypatch, capsys, large, *eighths, *words)
    assert {way["engine"] for way in json.loads(said)["ways"]} == {"ddp", "fsdp2"}
    assert "fsdp2" not in run(monkeypatch, capsys, large, *eighths, *words[:-2])[1]
    code, _, error = run(monkeypatch, capsys, large, "adapter.use_dora=true", *words)
    assert code == 2
    assert "--adapters 2: adapter.use_dora isn't computed for several adapters at once" in error


def test_drawn_answers_are_counted(make_recipe: MakeRecipe) -> None:
    """Prompts once with all their answers in a step; keys and values of those that are drawn at a time where
    they are more than a step's activations, and fewer of them as what would make it fit."""
    rewards = {"own": {"kind": "exact_match"}}
    objective = {"kind": "grpo", "group_size": 6, "max_new_tokens": 32, "rewards": rewards}
    train = {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 3}
    recipe = make_recipe(objective=objective, train=train)
    loaded = with_objective_defaults(recipe)
    load, job = load_of(loaded), job_for(loaded)
    prompt = load.row_tokens - 32
    assert load.micro_batch_tokens == 2 * (prompt + 6 * 32)
    assert load.tokens == 3 * 4 * (prompt + 6 * 32)
    assert job.answers == 24
    assert memory_of(job).drawing == 0
    many = replace(job, answers=65536)
    key_width = many.shape.key_width
    cached = 65536 * (load.row_tokens * 2 * many.shape.layers * key_width * 4 + 12 * many.shape.vocabulary)
    step = memory_of(job)
    beside = step.weights + step.adapter + step.optimizer + step.overhead
    assert memory_of(many).total == pytest.approx(beside + cached)
    change = cheapest_change(many, [SINGLE], int(memory_of(many).total * 0.7))
    assert change is not None
    assert change.what == "objective.answers_at_a_time: 32768"


def test_the_answers_that_a_step_draws(make_recipe: MakeRecipe) -> None:
    """Each prompt's once, or in each round of objective.resample as well; none without drawing."""
    rewards = {"own": {"kind": "exact_match"}}
    objective = {"kind": "grpo", "group_size": 6, "max_new_tokens": 32, "rewards": rewards, "resample": 2}
    train = {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 3}
    drawing = with_objective_defaults(make_recipe(objective=objective, train=train))
    options: Any = {"gpus": 1, "gpu_memory": None, "engine": None, "tokens_per_second": None}
    assert plan(drawing, **options).drawn_answers == (24, 72)
    assert plan(make_recipe(), **options).drawn_answers == (0, 0)


def test_a_plan_says_that_batches_do_not_divide(make_recipe: MakeRecipe) -> None:
    """Among the GPUs that are asked about: what it takes is told, and that training would be refused."""
    recipe = make_recipe(train={"global_batch_size": 4, "micro_batch_size": 2})
    options: Any = {"gpu_memory": None, "engine": None, "tokens_per_second": None}
    assert plan(recipe, gpus=2, **options).uneven is None
    found = plan(recipe, gpus=3, **options)
    assert found.uneven is not None
    assert "4 does not divide into micro_batch_size 2 x 3 processes" in found.uneven
    assert f"but                 {found.uneven}" in closing(found)
