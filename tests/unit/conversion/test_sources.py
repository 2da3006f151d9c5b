"""Where a tool's file has its rows, and how they are written: dataset_info.json, folders, lists, the hub."""

import json
from pathlib import Path
from typing import Any

import pytest

import finetune
from data_prep.config.sources import RowTemplate
from data_prep.formats.base import FormatOptions
from data_prep.formats.template import parse_template
from data_prep.messages import Conversation
from finetune.conversion import Conversion, ConvertError
from finetune.recipe.load import load_recipe
from tests.support.alpaca import published
from tests.unit.conversion.configurations import value_at

LLAMAFACTORY = "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\ndataset: rows\n"
TORCHTUNE = """\
model: {_component_: torchtune.models.llama3_2.lora_llama3_2_1b, lora_attn_modules: [q_proj]}
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, max_seq_len: 400}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: owner/base}
"""
ALPACA = "dataset: {_component_: torchtune.datasets.alpaca_dataset, column_map: {instruction: ask}}\n"
LITGPT = "checkpoint_dir: checkpoints/a/b\nlora_r: 4\nlora_query: true\ndata: {class_path: litgpt.data.JSON, init_args: {json_path: rows}}\n"
MLX = "model: a/b\ntrain: true\nfine_tune_type: lora\nbatch_size: 4\niters: 10\ndata: unread\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    for name in ("train.json", "val.json"):
        Path("rows", name).write_text("[]")


def converted(text: str, info: Any = None) -> tuple[Conversion, dict[str, Any]]:
    if info is not None:
        Path("dataset_info.json").write_text(json.dumps({"rows": info}))
    Path("a.yaml").write_text(text)
    conversion = finetune.convert("a.yaml", output="recipe.yaml")
    return conversion, load_recipe(Path("recipe.yaml")).recipe.model_dump(mode="json")


def changes(conversion: Conversion) -> list[str]:
    return [line.how for line in (*conversion.otherwise, *conversion.dropped) if line.changes]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"hf_hub_url": 3}, "dataset_info.json has hf_hub_url: 3, expected a name of the hub"),
        ({"hf_hub_url": "c/d", "columns": ["a"]}, "columns: "),
        ({"hf_hub_url": "c/d", "columns": {"prompt": 4}}, "columns: "),
        ({"hf_hub_url": "c/d", "tags": 5}, "tags: 5, expected names by names"),
        ({"hf_hub_url": "c/d", "num_samples": True}, "num_samples: true, expected a number of rows"),
        ({"script_url": "rows.py"}, "no code is run"),
        ({"hf_hub_url": "c/d", "columns": {"images": "image"}}, "rows of text are trained on here"),
        ({"hf_hub_url": "c/d", "columns": {"kto_tag": "liked"}}, "holds judged answers"),
        ({"formatting": "alpaca"}, "names neither a file nor a data set"),
    ],
    ids=range(9),
)
def test_a_description_that_is_of_another_kind_is_refused(info: Any, message: str) -> None:
    """dataset_info.json is read like the file itself: one located message."""
    with pytest.raises(ConvertError) as error:
        converted(LLAMAFACTORY, info)
    assert str(error.value).startswith("a.yaml:4: dataset: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("info", "lost"),
    [
        ({"hf_hub_url": "c/d", "columns": {"history": "before"}}, "history"),
        ({"hf_hub_url": "c/d", "formatting": "sharegpt", "tags": {"role_tag": "speaker"}}, "role_tag: speaker"),
        ({"hf_hub_url": "c/d", "formatting": "sharegpt", "tags": {"role_tag": "role", "content_tag": "content"}}, ""),
    ],
    ids=range(3),
)  # fmt: skip
def test_parts_of_a_row_that_are_not_read_are_named(info: Any, lost: str) -> None:
    """The turns before, and turns whose parts have names of their own."""
    conversion, _ = converted(LLAMAFACTORY, info)
    assert len(changes(conversion)) == bool(lost)
    assert lost in "".join(changes(conversion))


def test_a_file_without_a_suffix_is_no_data_set_of_the_hub() -> None:
    """dataset_info.json says file_name: what isn't there is absent, and is not looked for elsewhere."""
    Path("dataset_info.json").write_text('{"rows": {"file_name": "lines"}}')
    Path("a.yaml").write_text(LLAMAFACTORY)
    conversion = finetune.convert("a.yaml")
    assert "path: lines " in conversion.recipe
    assert any("no such file" in line for line in conversion.absent)


def test_thoughts_that_are_switched_off_are_left_out_and_named() -> None:
    """LLaMA-Factory cuts them from answers, and doesn't learn the empty one that it writes."""
    conversion, recipe = converted(LLAMAFACTORY + "enable_thinking: false\n", {"hf_hub_url": "c/d"})
    assert recipe["data"]["reasoning"] == "drop"
    assert len(changes(conversion)) == 1


@pytest.mark.parametrize("kind", ["hqq", "eetq"])
def test_another_way_to_quantise_is_named(kind: str) -> None:
    """4 bits of another library are other weights."""
    text = f"{LLAMAFACTORY}quantization_bit: 4\nquantization_method: {kind}\n"
    assert kind in changes(converted(text, {"hf_hub_url": "c/d"})[0])[0]


@pytest.mark.parametrize(
    "row", [{"ask": "Add.", "input": "1 2"}, {"ask": "Add."}, {"ask": "Add.", "input": ""}]
)
def test_torchtunes_alpaca_rows_are_the_published_prompt_in_a_turn(row: dict[str, str]) -> None:
    """The tokenizer of Llama 3 writes its turns around it."""
    _, recipe = converted(TORCHTUNE + ALPACA)
    assert recipe["model"]["chat_template"] == "llama3"
    template = RowTemplate.model_validate(recipe["data"]["train"][0]["template"])
    (parsed,) = parse_template(row | {"output": "3"}, FormatOptions(template=template))
    assert isinstance(parsed, Conversation)
    assert parsed.messages[0].content == published(row["ask"], row.get("input", ""))


def test_several_data_sets_of_torchtune_are_all_read() -> None:
    """A list of builders is as many sources."""
    chat = "{_component_: torchtune.datasets.chat_dataset, source: c/d, conversation_style: sharegpt}"
    _, recipe = converted(f"{TORCHTUNE}dataset: [{chat}, {chat.replace('c/d', 'e/f')}]\n")
    assert [row["dataset"] for row in recipe["data"]["train"]] == ["c/d", "e/f"]


def test_a_prompt_template_of_torchtune_is_named() -> None:
    """It isn't the base's own."""
    conversion, _ = converted(
        TORCHTUNE.replace("max_seq_len: 400", "max_seq_len: 400, prompt_template: a.Template") + ALPACA
    )
    assert len(changes(conversion)) == 1


def test_litgpts_folder_is_its_two_files_and_its_base_the_hubs() -> None:
    """val.json is not trained on, and checkpoints/OWNER/NAME is OWNER/NAME."""
    _, recipe = converted(LITGPT)
    assert recipe["model"]["base"] == "a/b"
    assert value_at(recipe, "data.train.0.path").endswith("rows/train.json")
    assert value_at(recipe, "data.evaluation.sources.0.path").endswith("rows/val.json")


@pytest.mark.parametrize(
    ("features", "form", "columns"),
    [
        ("prompt_feature: ask, completion_feature: completion", "prompt_completion", {"prompt": "ask"}),
        ("chat_feature: talk", "messages", {"messages": "talk"}),
        ("text_feature: text", "text", {}),
    ],
)
def test_a_data_set_of_the_hub_in_mlx_lm_goes_before_data(
    features: str, form: str, columns: dict[str, str]
) -> None:
    """With its splits and its columns."""
    hub = f"hf_dataset: {{path: c/d, train_split: 'train[:9]', valid_split: test, {features}}}\n"
    _, recipe = converted(MLX + hub)
    (row,) = recipe["data"]["train"]
    assert (row["dataset"], row["split"], row["format"], row["columns"]) == (
        "c/d",
        "train[:9]",
        form,
        columns,
    )
    assert value_at(recipe, "data.evaluation.sources.0.split") == "test"


@pytest.mark.parametrize(("option", "corrected"), [("", False), ("true", True), ("false", False)])
def test_adam_without_correction_is_carried(option: str, corrected: bool) -> None:
    """MLX's default is without."""
    more = f"optimizer_config: {{adam: {{bias_correction: {option}}}}}\n" if option else ""
    conversion, recipe = converted(MLX.replace("unread", "c/d") + more)
    assert not changes(conversion)
    assert recipe["train"].get("adam_bias_correction", True) is corrected


UNFIT = (
    "allenai/OLMoE-1B-7B", "ibm-granite/granite-3.0-1b-a400m", "OpenGVLab/InternVL2-8B", "google/paligemma-3b",
    "google/gemma-3-4b-it", "databricks/dbrx-base", "moonshotai/Kimi-K2-Instruct", "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen2.5-VL-3B", "openai/gpt-oss-20b",
)  # fmt: skip
FIT = (
    "meta-llama/Llama-3.2-1B", "google/gemma-3-1b-it", "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B-Instruct",
    "mistralai/Mistral-7B-v0.3", "microsoft/phi-2", "a/vlad-7b", "a/romoeo-7b",
)  # fmt: skip


@pytest.mark.parametrize("name", [*UNFIT, *FIT])
def test_bases_that_see_or_are_mixtures_are_known_by_their_names(name: str) -> None:
    """And text models aren't taken for them."""
    text = MLX.replace("a/b", name).replace("unread", "c/d")
    if name in FIT:
        assert converted(text)[1]["model"]["base"] == name
    else:
        with pytest.raises(ConvertError, match="multimodal base or a mixture of experts"):
            converted(text)


V1 = "model: a/b\nmodel_class: llm\npeft_config: {name: lora}\ntrain_dataset: c/d\nmicro_batch_size: 2\n"


@pytest.mark.parametrize(("strategy", "changes_it"), [("padding_free", False), ("dynamic_batching", True)])
def test_batches_of_llamafactory_v1_are_of_rows_and_not_packs(strategy: str, changes_it: bool) -> None:
    """Without padding a step has the same rows; batches by tokens have others."""
    conversion, recipe = converted(f"{V1}batching_strategy: {strategy}\n")
    assert recipe["data"]["pack_length_tokens"] is None
    assert bool(changes(conversion)) == changes_it


def test_another_quantisation_of_llamafactory_v1_is_refused() -> None:
    """It isn't taken for bitsandbytes'."""
    with pytest.raises(ConvertError, match="expected bnb"):
        converted(f"{V1}quant_config: {{name: gptq}}\n")


def test_an_adapter_on_the_head_beside_all_linear_layers_is_named() -> None:
    """Axolotl adds the modules that are named to all linear ones."""
    text = (
        "base_model: a/b\nadapter: lora\nlora_target_linear: true\nlora_target_modules: [q_proj, lm_head]\n"
    )
    conversion, _ = converted(f"{text}sequence_len: 64\ndatasets: [{{path: c/d, type: chat_template}}]\n")
    assert any("lm_head none" in how for how in changes(conversion))
