"""Each family as the toolkit computes it is what plain transformers computes, with every option of its config
in use."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM

from finetune.errors import ModelError
from finetune.models import architectures
from finetune.models.architectures.base import (
    DECODER,
    EMBEDDING,
    FINAL_NORM,
    LAYERS,
    LM_HEAD,
    ArchitectureSpec,
    last_part,
)
from finetune.models.architectures.tables import families_table
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import Base, check_architecture, check_base
from finetune.models.bases.shapes import count_parameters, read_shape
from finetune.models.batch import packed_batch, padded_batch
from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.rms_norm import FrozenRmsNorm
from finetune.models.logits import head_of, states_of
from finetune.models.recomputation import recompute_activations
from finetune.recipe.schema.model import ModelSection, RopeScaling
from tests.support.families import (
    LENGTHS,
    LONGROPE,
    NO_OPTIONS,
    OF_ALL,
    OPTIONS,
    WINDOWED,
    assert_same,
    loaded,
    option_defaults,
    rows,
    save_tiny_family,
    tiny_config,
    tiny_model,
    with_adapter,
)
from tests.support.losses import install_supervised_loss

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = [family.model_type for family in architectures.FAMILIES]
NO_DROPOUT = {"attention_dropout": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_option_of_the_config(family: str) -> None:
    """Each option of the family's config class is in it, at another value than its default, and nothing else
    is."""
    options, defaults = OF_ALL | OPTIONS[family], option_defaults(family)
    assert options.keys() == defaults.keys()
    config = tiny_config(family)
    for name, default in defaults.items():
        assert getattr(config, name) != default, name
    assert not NO_OPTIONS & options.keys()


@pytest.mark.parametrize("batched", ["packed", "padded"])
@pytest.mark.parametrize("trained", ["all weights", "LoRA"])
@pytest.mark.parametrize(
    "changes", [{}, {"hidden_act": "silu"}, {"hidden_act": "silu", "tie_word_embeddings": False}], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers(
    family: str, changes: dict[str, Any], trained: str, batched: str, tmp_path: Path
) -> None:
    """With every option in use, loss and all gradients of rows in one batch are plain transformers' of each
    row by itself."""
    folder = save_tiny_family(tmp_path / "base", family, **changes)
    ours, theirs = (
        loaded(folder),
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(),
    )
    if trained == "LoRA":
        ours, theirs = with_adapter(ours), with_adapter(theirs)
        assert install_fast_path(ours) == 2 * len(architectures.family_of(family).linear_layers)  # type: ignore[union-attr]
    assert_same(
        ours, theirs, packed_batch(rows()) if batched == "packed" else padded_batch(rows(), pad_token_id=2)
    )


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("window", [5, 64])
def test_a_window_is_seen_in_each_document(window: int, family: str, tmp_path: Path) -> None:
    """Shorter than the documents and beyond them, to the same gradients; in float64, since some processors'
    sums of float32 are more than 1e-5 apart here."""
    folder = save_tiny_family(tmp_path / "base", family, sliding_window=window, hidden_act="silu")
    theirs = with_adapter(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double())
    ours = with_adapter(loaded(folder).double())
    install_fast_path(ours)
    assert_same(ours, theirs, packed_batch(rows()))


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_is_seen_without_packs(family: str, tmp_path: Path) -> None:
    """In rows of one length, which come without a mask."""
    folder = save_tiny_family(tmp_path / "base", family, sliding_window=3, hidden_act="silu", **NO_DROPOUT)
    ids = torch.randint(3, 250, (2, 11), generator=torch.Generator().manual_seed(3))
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    torch.testing.assert_close(loaded(folder)(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batched", ["packed", "padded"])
def test_longrope_scales_each_document_by_its_own_length(batched: str, tmp_path: Path) -> None:
    """Phi 3's two sets of frequencies in one batch: loss and gradients are those of each row by itself."""
    folder = save_tiny_family(tmp_path / "base", "phi3", hidden_act="silu", **LONGROPE)
    theirs = with_adapter(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval())
    ours = with_adapter(loaded(folder))
    install_fast_path(ours)
    assert min(LENGTHS) < LONGROPE["original_max_position_embeddings"] < max(LENGTHS)
    assert_same(
        ours, theirs, packed_batch(rows()) if batched == "packed" else padded_batch(rows(), pad_token_id=2)
    )


def test_the_first_name_of_longrope_is_read(tmp_path: Path) -> None:
    """su in an early file of Phi 3 is longrope."""
    folder = save_tiny_family(tmp_path / "base", "phi3", **LONGROPE)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "su"
    (folder / "config.json").write_text(json.dumps(config))
    check_base(folder, ModelSection(base=str(folder)))
    assert (
        load_config(Base(folder, {"kind": "folder", "name": "tiny"})).rope_parameters["rope_type"]
        == "longrope"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_nothing(family: str, tmp_path: Path) -> None:
    """Layers that are computed again give the same gradients."""
    off = NO_DROPOUT | {name: 0.0 for name in OPTIONS[family] if name.endswith("_pdrop")}
    folder = save_tiny_family(tmp_path / "base", family, hidden_act="silu", **off)
    theirs = with_adapter(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval())
    ours = with_adapter(loaded(folder)).train()
    install_fast_path(ours)
    recompute_activations(ours)
    assert_same(ours, theirs, packed_batch(rows()))


def own_logits(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the family's own forward, and those that the loss is computed from."""
    with torch.no_grad():
        return model(input_ids=ids).logits, head_of(model)(states_of(model, input_ids=ids)[0])


IDS = torch.arange(3, 33).view(2, 15)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_to_its_logits_is_declared(family: str) -> None:
    """With every option in use, the logits that the loss is computed from are those of the family's own
    forward."""
    own, ours = own_logits(tiny_model(tiny_config(family)), IDS)
    assert torch.allclose(ours, own, rtol=1e-6, atol=1e-6)


def test_a_family_that_does_not_declare_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite without its declaration fails the comparison: the test above can fail."""
    silent = tuple(replace(family, change_logits=None) for family in architectures.FAMILIES)
    monkeypatch.setattr(architectures, "FAMILIES", silent)
    own, ours = own_logits(tiny_model(tiny_config("granite")), IDS)
    assert not torch.allclose(ours, own, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "changes"), [("gemma2", {"final_logit_softcapping": 0.5}), ("cohere", {"logit_scale": 3.0})]
)
def test_the_loss_of_another_family_is_its_own_forwards(
    family: str, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Of a family that isn't supported (allow_untested) the logits are those of its own forward, and the log
    says so once."""
    ours, theirs = (tiny_model(tiny_config(family, defaults=True, **changes)) for _ in range(2))
    own, used = own_logits(ours, IDS)
    assert torch.equal(used, own)
    if isinstance(ours, Gemma2ForCausalLM):
        assert float(own.abs().max()) <= 0.5, "the softcap has no effect"
    install_supervised_loss(ours)
    assert_same(ours, theirs, padded_batch(rows(), pad_token_id=2))
    assert sum(f"{family} isn't among the supported families" in message for message in caplog.messages) <= 1


def test_another_family_is_refused_with_the_names_of_ours() -> None:
    """The message lists the registry."""
    with pytest.raises(
        ModelError,
        match=f"architecture 'gemma2'; tested are {', '.join(FAMILIES)}. Choose such a base, or set",
    ):
        check_architecture({"model_type": "gemma2"}, allow_untested=False)


def test_the_manual_lists_the_registry() -> None:
    """Its table has each family (tests/unit/test_manual.py), and no other page or message has a list of its
    own."""
    assert (
        f"<!-- models: families -->\n{families_table()}\n<!-- end -->"
        in (ROOT / "docs/recipe.md").read_text()
    )
    pages = [
        *ROOT.glob("docs/*.md"),
        ROOT / "README.md",
        *(ROOT / "finetune").rglob("*.py"),
        *ROOT.glob("recipes/**/*.json"),
    ]
    assert [str(page) for page in pages if "mistral, qwen2" in page.read_text()] == []


@pytest.mark.parametrize("family", architectures.FAMILIES, ids=FAMILIES)
def test_a_family_says_what_its_model_is(family: ArchitectureSpec) -> None:
    """Parameters with their shapes, linear layers, classes, embedding and head are those of transformers'
    model."""
    for changes in ({}, {"defaults": True}):
        config = tiny_config(family.model_type, **changes)
        model = tiny_model(config)
        shape = read_shape(config.to_dict())
        assert count_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())
        layer = model.get_submodule(f"{LAYERS}.0")
        wanted = {
            f"{name}.weight": (linear.outputs, linear.inputs)
            for name, linear in shape.decoder_layer.linear.items()
        }
        wanted |= {
            f"{name}.bias": (linear.outputs,)
            for name, linear in shape.decoder_layer.linear.items()
            if linear.bias
        }
        norms = {f"{name}.weight": size for name, size in shape.decoder_layer.norms.items()}
        assert {
            name: tuple(parameter.shape) for name, parameter in layer.named_parameters()
        } == wanted | norms
        assert type(layer).__name__ == family.decoder_layer
        classes = {type(module).__name__ for module in model.modules()}
        assert {*family.fused_norms, *family.fused_mlps} <= classes
        assert model.get_submodule(EMBEDDING) is model.get_input_embeddings()
        assert model.get_submodule(LM_HEAD) is model.get_output_embeddings()
        assert model.get_submodule(FINAL_NORM).weight.shape == (64,)
        assert model.base_model_prefix == DECODER
        linear = {last_part(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert linear - {LM_HEAD} == set(family.linear_layers)
        for group in family.shared_inputs:
            assert set(group) <= linear
    assert family.gguf.name in gguf.MODEL_ARCH_NAMES.values()


@pytest.mark.parametrize("family", architectures.FAMILIES, ids=FAMILIES)
def test_fused_norms_round_as_their_own(family: ArchitectureSpec) -> None:
    """In bf16 a fused norm's output is bit for bit that of the family's own class."""
    model = tiny_model(tiny_config(family.model_type)).to(torch.bfloat16)  # type: ignore[arg-type]
    norms: list[Any] = [module for module in model.modules() if type(module).__name__ in family.fused_norms]
    for norm in norms:
        x = torch.randn(3, 7, norm.weight.shape[0], generator=torch.Generator().manual_seed(0)).bfloat16()
        assert torch.equal(FrozenRmsNorm.apply(x, norm.weight, norm.variance_epsilon), norm(x))
    assert bool(norms) == bool(family.fused_norms)


def test_a_family_without_fused_norms_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line of the log says what transformers computes."""
    caplog.set_level("INFO", logger="finetune")
    install_fast_path(with_adapter(loaded(save_tiny_family(tmp_path / "base", "olmo2"))))
    assert [message for message in caplog.messages if "own forward" in message] == [
        "the norms of olmo2 are computed by transformers' own forward"
    ]


def test_layers_without_a_family_are_not_fused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another family an MLP with the usual names may multiply by more: only its LoRA layers are fused,
    each by itself."""
    monkeypatch.setattr(architectures, "FAMILIES", ())
    theirs, ours = (with_adapter(tiny_model(tiny_config("granite", hidden_act="silu"))) for _ in range(2))
    assert install_fast_path(ours) == 14
    assert not any(
        "forward" in vars(module) for module in ours.modules() if type(module).__name__ == "GraniteMLP"
    )
    expected = theirs(input_ids=IDS).logits
    assert (ours(input_ids=IDS).logits - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5: expected 1"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "expected one of default, longrope, su",
        ),
        (
            "olmo2",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "expected one of default, linear, yarn, llama3",
        ),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0; expected a finite number above 0"),
        (
            "granite",
            {"residual_multiplier": "big"},
            "residual_multiplier is 'big'; expected a finite number above 0",
        ),
    ],
)
def test_a_config_that_its_family_can_not_have_is_refused(
    family: str, changes: dict[str, Any], expected: str
) -> None:
    """One message, before anything is built from it."""
    config = tiny_config(family, defaults=True).to_dict()
    with pytest.raises(ModelError, match=expected):
        read_shape(config | changes)


def test_a_way_to_scale_positions_that_a_family_lacks_is_refused(tmp_path: Path) -> None:
    """transformers reads yarn as longrope for Phi 3: the recipe's scaling would become another."""
    folder = save_tiny_family(tmp_path / "base", "phi3")
    section = ModelSection(base=str(folder), rope_scaling=RopeScaling(type="yarn", factor=2.0))
    with pytest.raises(
        ModelError,
        match=r"rope_scaling\.type is yarn, and transformers doesn't scale the positions of phi3 so",
    ):
        check_base(folder, section)
