"""Classification heads: runs and adapters made by peft, merged, and compared with what plain transformers
loads."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
)

from data_prep.config import HeadSection
from data_prep.table.documents import Document
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.cli.merge import lines_of
from finetune.data import prepare_data
from finetune.errors import CheckFailed, MergeError
from finetune.evaluation.evaluation import Evaluation
from finetune.exporters import safetensors as stream
from finetune.merging import merged_weights as adapted
from finetune.merging.combine import combine
from finetune.merging.merge import merge
from finetune.merging.merged_weights import MergedWeights
from finetune.merging.plan import plan_merge
from finetune.merging.targets import choose_target
from finetune.merging.verification import heads as verify_heads
from finetune.merging.verification import lazy_model as models
from finetune.merging.verification.head_outputs import decisions_of, mean_kl, mean_loss
from finetune.merging.verification.heads import HeadVerification
from finetune.merging.verification.reverify import verify_again
from finetune.merging.verification.rows import HEAD_ROWS
from finetune.models.bases.shapes import read_stored
from finetune.models.device import choose_precision
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.folder import RunFolder
from finetune.runs.target import Target, resolve_target
from tests.support.adapters import make_adapter, save_random_adapter
from tests.support.cli import FinetuneHere
from tests.support.models import save_tiny_llama
from tests.support.processes import start

LABELS = ("refund", "delivery", "praise")
PROBLEMS = {
    "single_label": {"problem": "single_label", "labels": LABELS},
    "multi_label": {"problem": "multi_label", "labels": LABELS},
    "regression": {"problem": "regression"},
}
ANSWERS: dict[str, Callable[[int], object]] = {
    "single_label": lambda i: LABELS[i % 3],
    "multi_label": lambda i: [LABELS[i % 3], *([LABELS[(i + 1) % 3]] if i % 2 else [])],
    "regression": lambda i: (i % 3) / 2 - 0.3,
}
FORMATS = {"single_label": "classification", "multi_label": "classification", "regression": "regression"}
METRICS = {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "mean_squared_error"}
TOKENS = torch.arange(3, 43)[None]

Runs = Callable[..., tuple[RunFolder, Recipe]]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """base_of(tied) -> a tiny base in bf16, its head tied or not."""
    made: dict[bool, Path] = {}

    def make(tied: bool) -> Path:
        if tied not in made:
            folder = tmp_path_factory.mktemp("base")
            save_tiny_llama(folder, tie_word_embeddings=tied)
            LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
            made[tied] = folder
        return made[tied]

    return make


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, base_of: Callable[[bool], Path]) -> Runs:
    """run_of(problem, tied, method) -> a run that was trained, and its recipe; each is trained once."""
    made: dict[tuple[str, bool, str], tuple[RunFolder, Recipe]] = {}

    def make(problem: str, tied: bool = False, method: str = "lora") -> tuple[RunFolder, Recipe]:
        if (problem, tied, method) not in made:
            folder = tmp_path_factory.mktemp("runs")
            column = "value" if problem == "regression" else "label"
            texts = ["the money never came back", "where is the parcel now", "what a lovely brass lamp"]
            rows = [{"text": f"{texts[i % 3]} {i}", column: ANSWERS[problem](i)} for i in range(60)]
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            recipe = Recipe.model_validate(
                {
                    "model": {"base": str(base_of(tied)), "head": PROBLEMS[problem]},
                    "adapter": {"rank": 4, "method": method},
                    "data": {
                        "train": [{"path": str(folder / "rows.jsonl"), "format": FORMATS[problem]}],
                        "evaluation": {"fraction": 0.3},
                        "max_length_tokens": 128,
                    },
                    "train": {
                        "precision": "fp32",
                        "learning_rate": 1e-2,
                        "max_steps": 12,
                        "micro_batch_size": 4,
                    },
                    "evaluate": {"metrics": ["loss", METRICS[problem]]},
                    "tracking": {"tracker": "none"},
                    "output": {"folder": str(folder)},
                }
            )
            made[problem, tied, method] = start(recipe), recipe
        return made[problem, tied, method]

    return make


def merged(run: RunFolder, output: Path, **options: Any) -> tuple[Any, HeadVerification]:
    """Merge a run; the report and its verification."""
    report = merge(resolve_target(str(run.path)), output, **options)
    assert isinstance(report.verification, HeadVerification)
    return report, report.verification


def load_clean(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What plain transformers loads: nothing absent, nothing left over."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def outputs(model: Any, texts: list[str], folder: Path) -> torch.Tensor:
    """As a user of transformers would have them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: torch.Tensor = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return found


@pytest.mark.parametrize(
    ("problem", "tied"),
    [("single_label", False), ("single_label", True), ("multi_label", False), ("regression", True)],
)
def test_a_merged_run_is_a_plain_classifier(problem: str, tied: bool, run_of: Runs, tmp_path: Path) -> None:
    """Plain transformers loads it without a missing or unexpected key; its config.json names the labels; the
    head is the trained one to the last bit; nothing is left of the head that predicts tokens; its outputs are
    those of base + adapter."""
    run, recipe = run_of(problem, tied)
    output = tmp_path / "merged"
    report, found = merged(run, output)
    assert found.holds
    assert (found.rows, found.texts, found.problem) == (18, "the run's data", problem)
    model = load_clean(output)
    weights, adapter = (
        load_file(output / "model.safetensors"),
        load_file(run.adapter / "adapter_model.safetensors"),
    )
    assert torch.equal(weights["score.weight"], adapter["base_model.model.score.weight"])
    assert weights["score.weight"].dtype == torch.float32
    assert weights["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert "lm_head.weight" not in weights
    head = recipe.model.head
    assert head is not None
    names = list(head.labels) or ["value"]
    config, before = (
        json.loads((output / "config.json").read_text()),
        json.loads((base_file(recipe, "config.json")).read_text()),
    )
    assert config.pop("architectures") == ["LlamaForSequenceClassification"]
    assert config.pop("id2label") == {str(index): name for index, name in enumerate(names)}
    assert config.pop("label2id") == {name: index for index, name in enumerate(names)}
    assert config.pop("problem_type") == verify_problem(problem)
    assert config.pop("pad_token_id") == AutoTokenizer.from_pretrained(output).pad_token_id
    spelled_for_transformers_4 = {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "bfloat16"}
    kept = {key: value for key, value in before.items() if key not in ("architectures", "pad_token_id")}
    assert config == kept | spelled_for_transformers_4
    exact = tmp_path / "exact"
    merged(run, exact, dtype="float32")
    plain = AutoModelForSequenceClassification.from_pretrained(
        base_file(recipe), num_labels=len(names), dtype=torch.float32
    )
    peft = PeftModel.from_pretrained(plain, str(run.adapter)).eval()
    plain.config.pad_token_id = model.config.pad_token_id
    texts = ["where is my parcel", "thank you", "the money, please, and soon"]
    expected = outputs(peft, texts, output)
    torch.testing.assert_close(outputs(load_clean(exact), texts, output), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs(model, texts, output), expected, rtol=0, atol=0.1)
    assert not (output / "generation_config.json").exists()
    assert AutoTokenizer.from_pretrained(output).chat_template
    card = (output / "README.md").read_text()
    assert f"{problem}: {', '.join(names)} (score.weight in float32)" in card
    assert "outputs: holds on 18 rows" in card
    assert any("outputs" in name for name, _ in lines_of(report))


def test_the_card_s_program_reads_a_text_as_the_training_did(run_of: Runs, tmp_path: Path) -> None:
    """Copied out of README.md: its ids are those of the run's documents, its outputs those of base + adapter
    on them. The report says that there is a template to go through."""
    run, recipe = run_of("single_label")
    report, _ = merged(run, tmp_path / "merged", dtype="float32")
    assert any("through the chat template" in text for name, text in lines_of(report) if name == "note")
    program = (tmp_path / "merged" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    prepared = prepare_data(recipe, load_tokenizer(recipe.model.base))
    # The last token of a document stands where the head's answer does: the head reads those before it.
    documents = {
        tuple(document.token_ids[:-1])
        for table in (prepared.train, prepared.evaluation)
        for document in table
    }
    plain = AutoModelForSequenceClassification.from_pretrained(
        base_file(recipe), num_labels=3, dtype=torch.float32
    )
    plain.config.pad_token_id = 2
    peft = PeftModel.from_pretrained(plain, str(run.adapter)).eval()
    for line in Path(recipe.data.train[0].path).read_text().splitlines()[:5]:
        names: dict[str, Any] = {"folder": tmp_path / "merged", "text": json.loads(line)["text"]}
        exec(program, names)  # noqa: S102 - our own
        ids = names["inputs"]["input_ids"]
        assert tuple(ids[0].tolist()) in documents
        torch.testing.assert_close(names["outputs"], peft(input_ids=ids).logits, rtol=0, atol=1e-5)


def verify_problem(problem: str) -> str:
    """transformers' name of it."""
    return problem if problem == "regression" else f"{problem}_classification"


def base_file(recipe: Recipe, name: str = "") -> Path:
    """A file of the recipe's base."""
    return Path(str(recipe.model.base)) / name


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_a_merged_run_scores_as_the_run_does(problem: str, run_of: Runs, tmp_path: Path) -> None:
    """`finetune evaluate` finds the head in config.json, and the figures of the run: to float32's rounding
    where the merge is in float32; `finetune verify` finds that it holds."""
    run, recipe = run_of(problem)
    merged(run, tmp_path / "merged", dtype="float32")
    evaluation = Evaluation(recipe, choose_precision("fp32"))
    own, its = (evaluation.of(resolve_target(str(path))).values for path in (run.path, tmp_path / "merged"))
    assert its == pytest.approx(own, abs=1e-5)
    if problem == "single_label":
        assert its["accuracy"] == own["accuracy"] > 0.5
    again = verify_again(tmp_path / "merged", seed=3)
    assert (again.failures, again.left_out) == ([], None)
    assert isinstance(again.verification, HeadVerification)
    assert again.verification.float32_largest_difference is not None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_number_has_the_type_that_is_asked_for(dtype: str, run_of: Runs, tmp_path: Path) -> None:
    """--dtype is for the head as well, --max-shard-size holds, and --plan knows both sizes before."""
    run, _ = run_of("single_label")
    planned = plan_merge(str(run.path), base=None, dtype=dtype, output=None)
    report, found = merged(run, tmp_path / "merged", dtype=dtype, max_shard_size="100KB")
    assert (report.dtype, found.dtype) == (dtype, dtype)
    assert report.files == len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    stored = read_stored(tmp_path / "merged")
    assert stored is not None
    assert list(stored.dtypes) == [{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]]
    assert (planned.parameters, planned.written_bytes) == (stored.parameters, stored.bytes)
    load_clean(tmp_path / "merged")
    own = plan_merge(str(run.path), base=None, dtype=None, output=None)
    assert own.written_bytes == 2 * stored.parameters + 2 * 3 * 64  # the head is in float32


def test_a_plan_counts_without_the_weights(run_of: Runs, tmp_path: Path) -> None:
    """Where only config.json is on this machine, the plan leaves the head that predicts tokens out, too."""
    run, recipe = run_of("single_label")
    (tmp_path / "base").mkdir()
    shutil.copyfile(base_file(recipe, "config.json"), tmp_path / "base" / "config.json")
    there, absent = (
        plan_merge(str(run.adapter), base=base, dtype=None, output=None)
        for base in (base_file(recipe), tmp_path / "base")
    )
    assert absent.parameters == there.parameters


def test_a_qlora_head_merges_into_the_closer_base(run_of: Runs, tmp_path: Path) -> None:
    """Both bases are scored by the head's loss and KL on held-out rows; the head itself is never
    quantised."""
    run, recipe = run_of("single_label", method="qlora")
    report, found = merged(run, tmp_path / "merged")
    assert found.holds
    assert report.qlora.taken == "nf4"
    assert report.qlora.rows == 18
    assert report.qlora.scores["nf4"].kl < report.qlora.scores["16bit"].kl
    assert report.qlora.scores["nf4"].loss == pytest.approx(report.qlora.trained_loss, abs=0.05)
    head = load_file(tmp_path / "merged" / "model.safetensors")["score.weight"]
    assert torch.equal(
        head, load_file(run.adapter / "adapter_model.safetensors")["base_model.model.score.weight"]
    )
    load_clean(tmp_path / "merged")
    # What evaluates as the run does: NF4 base + adapter.
    evaluation = Evaluation(recipe, choose_precision("fp32"))
    own = evaluation.of(resolve_target(str(run.path))).values["loss"]
    assert report.qlora.trained_loss == pytest.approx(own, abs=1e-3)
    forced, _ = merged(run, tmp_path / "forced", qlora_base="16bit")
    assert (forced.qlora.taken, forced.qlora.forced) == ("16bit", True)


def test_kl_is_that_of_the_distributions_the_losses_take() -> None:
    """Nats a row: of the label, of each label by itself, and of a Gaussian; the loss is the head's."""
    one, other = torch.tensor([[0.3, -1.0], [2.0, 0.5]]), torch.tensor([[0.1, -0.4], [1.0, 0.5]])
    softmax = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=z) for z in (one, other))
    )
    bernoulli = torch.distributions.kl_divergence(
        *(torch.distributions.Bernoulli(logits=z) for z in (one, other))
    ).sum(-1)
    normal = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(z[:, :1], 1.0) for z in (one, other))
    )
    single, multi = HeadSection(labels=("a", "b")), HeadSection(problem="multi_label", labels=("a", "b"))
    number = HeadSection(problem="regression")
    assert mean_kl(one, other, single) == pytest.approx(float(softmax.mean()), rel=1e-5)
    assert mean_kl(one, other, multi) == pytest.approx(float(bernoulli.mean()), rel=1e-5)
    assert mean_kl(one[:, :1], other[:, :1], number) == pytest.approx(float(normal.mean()), rel=1e-5)
    assert decisions_of(one, multi)[0].tolist() == [True, False, True, True]
    assert decisions_of(one, single)[1].tolist() == pytest.approx([1.3, 1.5])
    rows = [Document([1, 2], ((1, 2, 1.0),), "x", (0.0,)), Document([1, 2], ((1, 2, 1.0),), "x", (1.0,))]
    assert mean_loss(rows, one, single) == pytest.approx(
        float(torch.nn.functional.cross_entropy(one, torch.tensor([0, 1]))), rel=1e-5
    )


def head_adapter(
    base: Path, folder: Path, *, labels: int = 3, new_tokens: tuple[str, ...] = (), **options: Any
) -> Target:
    """Plain peft's adapter for a model with a head, A, B and head random; nothing in the folder names the
    labels."""
    tokenizer = load_tokenizer(base, new_tokens=new_tokens)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
    if new_tokens:
        model.resize_token_embeddings(len(tokenizer))
    save_random_adapter(model, folder, **{"task_type": "SEQ_CLS"} | options)
    tokenizer.save_pretrained(folder)
    return Target(ModelSection(base=str(base)), folder, None, "a test's adapter")


@torch.no_grad()
def unmerged(target: Target, labels: int = 3) -> torch.Tensor:
    """Base + adapter's outputs by plain peft, of one row."""
    model = AutoModelForSequenceClassification.from_pretrained(
        target.model.base, num_labels=labels, dtype=torch.float32
    )
    size = len(AutoTokenizer.from_pretrained(target.adapter))
    if size > model.config.vocab_size:
        model.resize_token_embeddings(size)
    found: torch.Tensor = PeftModel.from_pretrained(model, str(target.adapter)).eval()(TOKENS).logits
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "use_rslora": True},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"new_tokens": ("<|order|>",), "trainable_token_indices": {"embed_tokens": [0]}},
        {"init_lora_weights": "pissa"},
        {"task_type": None, "modules_to_save": ["score"], "target_modules": ["q_proj"]},
    ],
    ids=["dora", "embedding saved", "embedding", "new tokens", "pissa, by peft", "no task type"],
)
def test_each_kind_of_adapter_merges_with_its_head(
    options: dict[str, Any], tied: bool, base_of: Callable[[bool], Path], tmp_path: Path
) -> None:
    """The merged model has base + adapter's outputs, and the head's labels are transformers' own where nobody
    names them."""
    base = base_of(tied)
    if "new_tokens" in options:
        options = options | {"trainable_token_indices": {"embed_tokens": [len(load_tokenizer(base))]}}
    target = head_adapter(base, tmp_path / "adapter", **options)
    report = merge(target, tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        found = load_clean(tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(found, unmerged(target), rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert "problem_type" not in config
    assert config["tie_word_embeddings"] is tied
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] == 2
    assert any("LABEL_0" in note for note in report.notes)
    assert any("merged by peft" in note for note in report.notes) is ("init_lora_weights" in options)
    assert isinstance(report.verification, HeadVerification)
    assert report.verification.texts == "built-in texts"
    assert not any("lm_head" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))


def test_peft_keeps_the_heads_type_as_streaming_does(base_of: Callable[[bool], Path], tmp_path: Path) -> None:
    """Without --dtype the head stays in float32 whichever way the merge goes, on a bf16 base."""
    target = head_adapter(base_of(False), tmp_path / "adapter", init_lora_weights="pissa")
    report = merge(target, tmp_path / "merged")
    assert "merged by peft" in report.notes[0]
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {name for name, tensor in weights.items() if tensor.dtype == torch.float32} == {"score.weight"}


def test_a_base_that_has_the_head_keeps_its_names(base_of: Callable[[bool], Path], tmp_path: Path) -> None:
    """An adapter on top of a classifier merges into it: the base's labels stay, the adapter's head replaces
    the base's."""
    base = tmp_path / "classifier"
    shutil.copytree(base_of(False), base)
    names = {0: "no", 1: "yes"}
    model = AutoModelForSequenceClassification.from_pretrained(
        base_of(False), id2label=names, problem_type="multi_label_classification"
    )
    model.config.pad_token_id = 2
    model.save_pretrained(base)
    target = head_adapter(base, tmp_path / "adapter", labels=2)
    merge(target, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["id2label"], config["problem_type"]) == (
        {"0": "no", "1": "yes"},
        "multi_label_classification",
    )
    with torch.no_grad():
        found = load_clean(tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(found, unmerged(target, labels=2), rtol=0, atol=0.1)
    resolved = resolve_target(str(tmp_path / "merged")).model.head
    assert resolved == HeadSection(problem="multi_label", labels=("no", "yes"))
    wrong = head_adapter(base_of(False), tmp_path / "wrong", labels=3)
    with pytest.raises(
        MergeError, match=r"its head is of shape \(3, 64\), and the base has a head of shape \(2, 64\)"
    ):
        merge(replace(wrong, model=ModelSection(base=str(base))), tmp_path / "other")


def test_a_base_without_any_head_will_do(base_of: Callable[[bool], Path], tmp_path: Path) -> None:
    """A base that was saved without its head, and without `model.` in its names, has all that a classifier
    needs."""
    base = tmp_path / "bare"
    shutil.copytree(base_of(False), base)
    AutoModelForCausalLM.from_pretrained(base_of(False)).model.save_pretrained(base)
    assert "embed_tokens.weight" in load_file(base / "model.safetensors")
    target = head_adapter(base, tmp_path / "adapter")
    merge(target, tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        found = load_clean(tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(found, unmerged(target), rtol=0, atol=1e-5)


def test_a_wrong_merge_fails_its_check(run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head whose labels changed places ends in OUTPUT.failed with its figures, exit code 3, and nothing
    under the output."""
    run, _ = run_of("single_label")
    honest = stream.bytes_of

    def careless(block: torch.Tensor) -> memoryview:
        return honest(block.flip(0) if block.shape == (3, 64) else block)

    monkeypatch.setattr(stream, "bytes_of", careless)
    with pytest.raises(
        CheckFailed, match=r"score\.weight is up to .* outputs differ by up to .* the label stays"
    ) as caught:
        merge(resolve_target(str(run.path)), tmp_path / "merged")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "merged").exists()
    figures = json.loads((tmp_path / "merged.failed" / "verification.json").read_text())
    assert figures["holds"] is False
    assert figures["verification"]["same_decisions"] < figures["verification"]["decisions"]


def test_an_update_that_peft_has_otherwise_fails_in_float32(
    run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale that is off by one per cent is wrong in every check's own arithmetic but peft's: the
    mathematics find it."""
    run, _ = run_of("multi_label")
    honest = adapted.scale_of
    monkeypatch.setattr(adapted, "scale_of", lambda *words: 0.99 * honest(*words))
    with pytest.raises(CheckFailed, match=r"adapter \(merged in float32, outputs differ"):
        merge(resolve_target(str(run.path)), tmp_path / "merged")


def test_a_type_that_is_too_coarse_is_told(
    run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rounding moves the outputs beyond the bound, the message names the types that would do."""
    run, _ = run_of("regression", True)
    monkeypatch.setattr(verify_heads, "ROUNDED_FRACTION", {torch.bfloat16: 1e-4})
    with pytest.raises(CheckFailed, match=r"bfloat16 is too coarse .* --dtype float16 or float32"):
        merge(resolve_target(str(run.path)), tmp_path / "merged")
    report = merge(resolve_target(str(run.path)), tmp_path / "other", dtype="float32")
    assert isinstance(report.verification, HeadVerification)
    assert report.verification.decisions == 0


def test_a_model_larger_than_the_memory_is_verified_layer_by_layer(
    run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model in float32 doesn't fit, fewer rows go through it from the disk, and a wrong merge still
    fails."""
    run, _ = run_of("single_label")
    monkeypatch.setattr(models, "fits_in_memory", lambda _: False)
    _, found = merged(run, tmp_path / "merged", dtype="float32")
    assert (found.layer_by_layer, found.rows, found.float32_largest_difference) == (True, 2, None)
    assert found.holds
    honest = stream.write_weights

    def careless(weights: MergedWeights, folder: Path, largest: int, workers: int) -> object:
        written = honest(weights, folder, largest, workers)
        stored = load_file(folder / "model.safetensors")
        stored["model.layers.0.mlp.up_proj.weight"] *= 3
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return written

    monkeypatch.setattr(stream, "write_weights", careless)
    with pytest.raises(CheckFailed, match="the stored model's outputs differ"):
        merged(run, tmp_path / "wrong", dtype="float32")


def test_rows_that_end_in_padding_are_told(run_of: Runs, tmp_path: Path) -> None:
    """Plain transformers skips padding tokens at the end of a row; where the training read one, report and
    card say so."""
    run, _ = run_of("single_label")
    adapter = tmp_path / "adapter"
    shutil.copytree(run.adapter, adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(adapter)
    (adapter / "finetune.json").unlink()  # which knows the template that was trained with
    report = merge(replace(resolve_target(str(run.path)), adapter=adapter), tmp_path / "merged")
    assert isinstance(report.verification, HeadVerification)
    assert report.verification.end_in_padding == report.verification.rows
    assert "which plain transformers skips" in (tmp_path / "merged" / "README.md").read_text()


def test_up_to_so_many_rows_are_read_to_their_ends(run_of: Runs, tmp_path: Path) -> None:
    """A head says one thing of a row: it is compared on more rows than logits are, by the last tokens of
    each."""
    run, recipe = run_of("single_label")
    rows = [{"text": "far " * 900 + word, "label": "praise"} for word in ("one", "two")] * 12
    rows += [{"text": f"near {index}", "label": "praise"} for index in range(60)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "train": [{"path": str(tmp_path / "long.jsonl"), "format": "classification"}],
        "max_length_tokens": 4096,
    }
    for train, count in ((data, 8), (recipe.data.model_dump() | {"evaluation": None}, HEAD_ROWS)):
        other = Recipe.model_validate(recipe.model_dump() | {"data": train, "evaluate": {}})
        target = replace(resolve_target(str(run.path)), recipe=other)
        report = merge(target, tmp_path / f"merged-{count}")
        assert isinstance(report.verification, HeadVerification)
        assert (report.verification.rows, report.verification.texts) == (count, "the run's data")


def spoil_config(adapter: Path, **values: Any) -> None:
    """Other values in adapter_config.json."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_head_that_is_not_there_is_refused(
    base_of: Callable[[bool], Path], run_of: Runs, tmp_path: Path
) -> None:
    """One message each: the head was not saved, is another task's, is another than the notes say, is of
    another width."""
    target = head_adapter(base_of(False), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(path)
    save_file({name: tensor for name, tensor in whole.items() if "score" not in name}, path)
    with pytest.raises(MergeError, match=r"its file holds no score\.weight"):
        merge(target, tmp_path / "merged")
    save_file(whole, path)
    spoil_config(tmp_path / "adapter", task_type="TOKEN_CLS")
    with pytest.raises(MergeError, match="is of task_type TOKEN_CLS"):
        merge(target, tmp_path / "merged")
    spoil_config(tmp_path / "adapter", task_type="SEQ_CLS")
    two = target.model.model_copy(update={"head": HeadSection(labels=("a", "b"))})
    with pytest.raises(MergeError, match=r"with 2 outputs .*by its weights it has 3 outputs"):
        merge(replace(target, model=two), tmp_path / "merged")
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    save_tiny_llama(narrow, hidden_size=32)
    with pytest.raises(MergeError, match="the base has a width of 32"):
        merge(replace(target, model=ModelSection(base=str(narrow))), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_would_mix_heads_is_refused(
    base_of: Callable[[bool], Path], run_of: Runs, tmp_path: Path
) -> None:
    """Several adapters of which one has a head, combinations of heads, an adapter that predicts tokens on a
    classifier."""
    run, _ = run_of("single_label")
    causal = make_adapter(base_of(False), tmp_path / "causal")
    for first, more in ((resolve_target(str(run.path)), tmp_path / "causal"), (causal, run.adapter)):
        with pytest.raises(MergeError, match="merge them one at a time"):
            merge(first, tmp_path / "merged", more=[more])
    for pair in ([str(run.path), str(tmp_path / "causal")], [str(run.path), str(run.path)]):
        with pytest.raises(MergeError, match=r"heads can't be combined\. Merge it by itself"):
            combine(pair, tmp_path / "merged", method="cat", weights=[0.5, 0.5], base=base_of(False))
    merged(run, tmp_path / "classifier")
    with pytest.raises(
        MergeError, match=r"is a model with a classification head, and the adapter in .* brings none"
    ):
        merge(replace(causal, model=ModelSection(base=str(tmp_path / "classifier"))), tmp_path / "merged")
    with pytest.raises(MergeError, match="there is nothing to merge"):
        choose_target(str(tmp_path / "classifier"), None)
    assert not (tmp_path / "merged").exists()


def test_one_after_the_other_is_the_way_to_two_adapters(
    base_of: Callable[[bool], Path], tmp_path: Path
) -> None:
    """An adapter that predicts tokens is merged first, and the one with the head into what came of it."""
    merge(make_adapter(base_of(False), tmp_path / "causal"), tmp_path / "first", dtype="float32")
    target = head_adapter(tmp_path / "first", tmp_path / "adapter")
    merge(target, tmp_path / "second")
    with torch.no_grad():
        found = load_clean(tmp_path / "second")(TOKENS).logits
    torch.testing.assert_close(found, unmerged(target), rtol=0, atol=1e-5)


def test_the_command_merges_a_run_with_a_head(
    run_of: Runs, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """`finetune merge RUN --output DIR` says what it checked of the outputs, and of the labels."""
    run, _ = run_of("single_label")
    done = finetune_here("merge", str(run.path), "--output", str(tmp_path / "merged"))
    assert "holds, on 18 rows (the run's data)" in done.stdout
    assert "same label in 18 of 18" in done.stdout
