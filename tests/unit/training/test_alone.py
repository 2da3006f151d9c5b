"""Nothing of a document depends on what is beside it: in a pack or a batch, in training, evaluation and
generation."""

import copy
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data_prep.table.documents import Document
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import ModelError
from finetune.evaluation.label_likelihood import label_likelihoods
from finetune.evaluation.losses import document_losses
from finetune.generation.generate import generate_ids
from finetune.merging.verification.distance import logits_of
from finetune.models.bases.locate import Base
from finetune.models.batch import packed_batch, padded_batch
from finetune.models.kernels.attention import PER_DOCUMENT, choose_attention, shares_beginnings
from finetune.models.kernels.noise import noise_seed, with_noise
from finetune.models.kernels.rope import BY_LENGTH, looks_at_length, scale_by_document
from finetune.models.load import load_model
from finetune.recipe.lock import Rules
from finetune.training import build
from finetune.training.batches import evaluation_batches
from finetune.training.inputs import build_inputs
from tests.support.losses import install_supervised_loss
from tests.support.models import save_tiny_llama
from tests.support.processes import trained_weights, trainer_of
from tests.support.recipes import MakeRecipe

WIDTH = 16
"""Of a head of the tiny base."""
ORIGINAL = 32
"""The positions beyond which a scaling that looks at a length does something."""
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "factor": 8.0, "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + n / 50 for n in range(WIDTH // 2)], "long_factor": [2.0 + n for n in range(WIDTH // 2)],
    },
    "llama3": {
        "factor": 8.0, "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
    "proportional": {"factor": 2.0, "partial_rotary_factor": 1.0},
}  # fmt: skip
LENGTHS = st.lists(
    st.one_of(st.integers(2, 12), st.integers(ORIGINAL - 1, ORIGINAL + 3), st.integers(60, 90)),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base for each scaling, with the same weights."""
    root = tmp_path_factory.mktemp("scalings")
    for name, parameters in SCALINGS.items():
        positions = ORIGINAL if name == "dynamic" else 256
        rope = {"rope_type": name, "rope_theta": 1e4, **parameters}
        save_tiny_llama(root / name, max_position_embeddings=positions, rope_parameters=rope)
    return {name: root / name for name in SCALINGS}


Bases = dict[str, Path]


@cache
def loaded(folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa"
    ).eval()


def plain(folder: Path) -> LlamaForCausalLM:
    """The base as plain transformers has it, in fp64 and fresh: what it was asked before has left nothing."""
    return copy.deepcopy(loaded(folder))


def ours(folder: Path) -> Any:
    """The base as this toolkit loads it, in fp64."""
    model = load_model(
        Base(folder, {"kind": "folder", "name": str(folder)}), dtype=torch.float64, attention=PER_DOCUMENT
    )
    return model.eval()


def document(length: int, seed: int) -> Document:
    ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Document(ids, ((length // 2, length, 1.0),), f"row {seed}")


def alone(folder: Path, one: Document) -> tuple[float, torch.Tensor]:
    """Sum of the losses, and gradient, of one document by plain transformers and plain cross-entropy."""
    model = plain(folder)
    logits = model(input_ids=torch.tensor([one.token_ids])).logits[0]
    first = one.spans[0][0]
    loss = functional.cross_entropy(
        logits[first - 1 : -1], torch.tensor(one.token_ids[first:]), reduction="sum"
    )
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_the_scalings_are_all_that_transformers_has() -> None:
    """Each type of RoPE is tried below, and those that look at a length are just those whose frequencies
    change with it."""
    assert set(SCALINGS) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("name", sorted(ROPE_INIT_FUNCTIONS))
def test_the_types_that_look_at_a_length_are_known(name: str, bases: Bases) -> None:
    """transformers' frequencies of a type change with the length exactly where BY_LENGTH has it."""
    config = plain(bases[name]).config
    few, many = (ROPE_INIT_FUNCTIONS[name](config, seq_len=torch.tensor(length))[0] for length in (8, 200))
    assert torch.equal(few, many) == (name not in BY_LENGTH)
    assert looks_at_length(config) == (name in BY_LENGTH)


@pytest.mark.parametrize("name", ["default", *BY_LENGTH])
def test_only_what_no_length_scales_is_shared(name: str, bases: Bases) -> None:
    """The chosen answer's length would scale the prompt that the rejected one goes on from."""
    config = plain(bases[name]).config
    attention = choose_attention(torch.device("cpu"), torch.float32, config)
    assert shares_beginnings(attention, config) == (name == "default")


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=LENGTHS)
@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_loss_and_gradient_are_those_of_each_document_alone(
    name: str, lengths: list[int], bases: Bases
) -> None:
    """In fp64, a step over documents in a pack, or in padded rows, has the losses and gradients of each
    alone, to 1e-11."""
    documents = [document(length, number) for number, length in enumerate(lengths)]
    parts = [alone(bases[name], one) for one in documents]
    loss, gradient = sum(part[0] for part in parts), sum(part[1] for part in parts)
    for batch in (packed_batch(documents), padded_batch(documents, pad_token_id=0)):
        model = ours(bases[name]).train()
        install_supervised_loss(model)
        found = model(**batch).loss
        found.backward()
        together = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        assert found.item() == pytest.approx(loss, rel=1e-11)
        assert (together - gradient).norm() <= 1e-11 * gradient.norm()


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=LENGTHS, batch_size=st.integers(1, 6))
@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_an_evaluation_measures_each_document_alone(
    name: str, lengths: list[int], batch_size: int, bases: Bases
) -> None:
    """`evaluate`, the trainer's evaluation batches and the merge's logits are each document's own, in any
    order."""
    documents = [document(length, number) for number, length in enumerate(lengths)]
    expected = [alone(bases[name], one)[0] for one in documents]
    model = ours(bases[name])
    for batch in (batch_size, 1, len(documents)):
        found = [loss.loss_sum for loss in document_losses(model, documents, batch)]
        assert found == pytest.approx(expected, rel=1e-11)
    with torch.no_grad():
        rows = logits_of(model, [one.token_ids for one in documents])
        for one, row in zip(documents, rows, strict=True):
            own = plain(bases[name])(input_ids=torch.tensor([one.token_ids])).logits[0]
            assert torch.allclose(row, own.float(), atol=1e-6)
        install_supervised_loss(model)
        for packed in (False, True):
            batches = evaluation_batches(
                documents, batch_size=batch_size, max_tokens=200, pad_token_id=0, packed=packed
            )
            assert sum(model(**batch).loss.item() for _, batch in batches) == pytest.approx(
                sum(expected), rel=1e-11
            )


@pytest.mark.parametrize("name", BY_LENGTH)
def test_answers_in_a_batch_are_those_of_each_prompt_alone(name: str, bases: Bases) -> None:
    """Greedy answers that cross the border, beside shorter and longer prompts: those of plain transformers,
    one by one."""
    folder = bases[name]
    tokenizer = load_tokenizer(folder)
    prompts = [
        document(length, length).token_ids
        for length in ((5, 12, 20, 26) if name == "dynamic" else (5, 20, 31, 34, 70))
    ]
    model = ours(folder)
    model.config.max_position_embeddings = 256  # the room that an answer has
    expected = []
    for prompt in prompts:
        fresh = plain(folder)
        made = fresh.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=2,
        )[0, len(prompt) :].tolist()  # fmt: skip
        expected.append(made)
    for size in (1, 2, len(prompts)):
        answers = generate_ids(model, tokenizer, prompts, max_new_tokens=24, batch_size=size)
        assert [ids[:20] for ids in answers] == [ids[:20] for ids in expected]


@pytest.mark.parametrize("name", ["default", *BY_LENGTH])
def test_the_likelihood_of_a_label_is_that_of_its_row_alone(name: str, bases: Bases) -> None:
    """Labels whose answers end on either side of the border: log p as plain transformers has it for prompt
    and label alone."""
    from data_prep.messages import Conversation, Message

    tokenizer: PreTrainedTokenizerFast = load_tokenizer(bases[name])
    questions = ["Blue?", "Is the sky blue", "What is the capital of France? Please send two brass lamps."]
    examples = [
        (text, Conversation((Message("user", text), Message("assistant", "yes")))) for text in questions
    ]
    labels = ("yes", "no, it is the capital of Germany and a brass lamp")
    found = label_likelihoods(ours(bases[name]), tokenizer, examples, labels, batch_size=4)
    for row, (_, example) in zip(found, examples, strict=True):
        for value, label in zip(row, labels, strict=True):
            turns = [{"role": "user", "content": example.messages[0].content}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            whole = tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": label}], return_dict=False
            )  # fmt: skip
            end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
            assert whole[: len(prompt)] == prompt
            with torch.no_grad():
                logits = plain(bases[name])(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            scores = logits[:-1].gather(1, torch.tensor(whole[1:])[:, None])[len(prompt) - 1 : end - 1]
            assert value == pytest.approx(scores.sum().item(), rel=1e-6)


def test_a_family_with_other_positions_is_refused(bases: Bases) -> None:
    """Where positions aren't LLaMA's, a scaling by length is refused by name, before anything is computed
    wrongly."""
    model = plain(bases["longrope"])
    own = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, positions: tuple(2 * part for part in own(x, positions))
    with pytest.raises(ModelError, match="LlamaRotaryEmbedding scales its positions by the longest row"):
        scale_by_document(model)


def test_a_run_of_an_earlier_version_keeps_its_scaling(bases: Bases, make_recipe: MakeRecipe) -> None:
    """By rule 1 a short document in a pack has the scaling of the longest, as it had when the run was
    started."""
    recipe = make_recipe(model={"base": str(bases["longrope"])}, data={"max_length_tokens": 100})
    short, long = document(9, 1), document(80, 2)
    losses = []
    for training in (1, 2):
        inputs = build_inputs(recipe, rules=Rules(training=training))
        model = build.build_model(recipe, inputs).eval()
        with torch.no_grad():
            together = model(**packed_batch([short, long])).loss
            losses.append(
                float(together - model(**packed_batch([long])).loss - model(**packed_batch([short])).loss)
            )
    assert abs(losses[0]) > 1e-3
    assert abs(losses[1]) < 1e-4


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    step=st.integers(1, 9),
    width=st.sampled_from([8, 64]),
)
def test_noise_is_each_documents_own(lengths: list[int], step: int, width: int) -> None:
    """In a pack, in padded rows and alone: the same noise, within alpha / sqrt(L D) of the document's own
    length L."""
    documents = [document(length + 1, number) for number, length in enumerate(lengths)]
    sizes = [len(one.token_ids) for one in documents]
    seeds = [noise_seed(5, step, one.place, one.token_ids) for one in documents]
    zeros = [torch.zeros(1, size, width) for size in sizes]
    own = [
        with_noise(zero, [size], [seed], 10.0)[0]
        for zero, size, seed in zip(zeros, sizes, seeds, strict=True)
    ]
    packed = with_noise(torch.zeros(1, sum(sizes), width), sizes, seeds, 10.0)[0].split(sizes)
    padded = with_noise(torch.zeros(len(sizes), max(sizes), width), sizes, seeds, 10.0)
    for row, (noise, size) in enumerate(zip(own, sizes, strict=True)):
        assert torch.equal(packed[row], noise)
        assert torch.equal(padded[row, :size], noise)
        assert not padded[row, size:].any()
        bound = 10.0 / math.sqrt(size * width)
        assert noise.abs().max() <= bound
        assert noise.abs().max() > 0.8 * bound or size * width < 64  # few numbers may all be small


NOISY = {
    "precision": "fp32", "optimizer": "sgd", "learning_rate": 0.1, "global_batch_size": 64, "max_steps": 3,
    "neftune_alpha": 5.0, "warmup_ratio": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("head", [None, pytest.param({"labels": ["blue", "lamp"]}, marks=pytest.mark.long)])
def test_noise_depends_on_no_split(
    make_recipe: MakeRecipe, tmp_path: Path, head: dict[str, Any] | None
) -> None:
    """In fp64, three steps with NEFTune over all rows end in one adapter: packed, padded, in micro-batches of
    1, 4 and 64."""
    sections: dict[str, Any] = {"data": {"max_length_tokens": 100, "evaluation": None}}
    if head is not None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(
                f'{{"text": "{"say " * n}{n}", "label": "{("blue", "lamp")[n % 2]}"}}\n' for n in range(1, 21)
            )
        )
        sections["data"] |= {"train": [{"path": str(rows), "format": "classification"}]}
        sections["model"] = {"base": str(make_recipe().model.base), "head": head}
    results = []
    for name, micro, data in (
        ("packed", 1, {"pack_length_tokens": 200}),
        ("one", 1, {}),
        ("four", 4, {}),
        ("all", 64, {}),
    ):
        recipe = make_recipe(
            **sections | {"train": NOISY | {"micro_batch_size": micro}, "data": sections["data"] | data}
        )
        results.append(trained_weights(trainer_of(recipe, tmp_path / name, torch.float64)))
    quiet = make_recipe(**sections | {"train": NOISY | {"neftune_alpha": None}})
    without = trained_weights(trainer_of(quiet, tmp_path / "quiet", torch.float64))
    for other in results[1:]:
        assert (other - results[0]).norm() <= 1e-12 * results[0].norm()
    assert (without - results[0]).norm() > 1e-6 * results[0].norm()


def noisy_losses(make_recipe: MakeRecipe, folder: Path, **train: Any) -> Iterator[float]:
    trainer = trainer_of(make_recipe(train=NOISY | {"micro_batch_size": 64} | train), folder)
    trainer.train()
    return (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def test_each_step_and_seed_has_other_noise(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With weights that stay, the loss of the same rows differs from step to step and by seed, and is the
    same again."""
    still = {"learning_rate": 1e-30}
    first = list(noisy_losses(make_recipe, tmp_path / "a", **still))
    assert len(set(first)) == 3
    assert list(noisy_losses(make_recipe, tmp_path / "b", **still)) == first
    assert set(noisy_losses(make_recipe, tmp_path / "c", seed=1, **still)).isdisjoint(first)


def test_a_run_of_an_earlier_version_keeps_its_noise_and_cuts(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """By rule 1 the noise is transformers' own, and by preparation 2 the token behind a cut has no label; now
    neither."""
    data = {"pack_length_tokens": 64, "max_length_tokens": 100, "pack_split": True, "evaluation": None}
    recipe = make_recipe(data=data, train=NOISY | {"micro_batch_size": 1, "global_batch_size": 8})
    found = []
    for rules in (Rules(preparation=2, training=1), Rules()):
        inputs = build_inputs(recipe, rules=rules)
        model = build.build_model(recipe, inputs)
        trainer = build.build_trainer(
            recipe, inputs, model, checkpoints=tmp_path, evaluate_first=False, callbacks=[]
        )
        feed = trainer.feed
        labels = sum(one.supervised_tokens for pack in feed.packs(0) for one in feed.documents_of(pack))
        found.append(
            (
                trainer.args.neftune_noise_alpha,
                feed.batching.noise_seed,
                labels < inputs.data.train.supervised_tokens.sum(),
            )
        )
    assert found == [(5.0, None, True), (None, recipe.train.seed, False)]
