"""One change of one file of a model's, an adapter's or a run's folder, as the file's own format suggests.

What the libraries know is asked of the libraries: keys of configurations, kinds of RoPE, of quantisation, of
adapters.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.templates import template
from tests.fuzz.tensors import change_tensors
from tests.fuzz.tokenizers import change_tokenizer, change_tokenizer_config, odd_token
from tests.fuzz.values import change_anywhere, change_json, damage, dumps, junk, set_known, shown

SIZES = [
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings",
]  # fmt: skip
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


@cache
def defaults_of(kind: str) -> dict[str, Any]:
    """What transformers writes for a model type; empty where that needs more than a name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        return json.loads(CONFIG_MAPPING[kind]().to_json_string())
    except Exception:  # noqa: BLE001 - a package that isn't there, a configuration that needs others
        return {"model_type": kind}


@cache
def model_types() -> list[str]:
    """All that transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING)


@cache
def quantizations() -> list[dict[str, Any]]:
    """A quantization_config of every kind that transformers has."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    found = []
    for name, kind in AUTO_QUANTIZATION_CONFIG_MAPPING.items():
        try:
            found.append(json.loads(json.dumps(kind().to_dict(), default=str)))
        except Exception:  # noqa: BLE001 - a package that isn't there, an argument that must be given
            found.append(
                {
                    "quant_method": name.removesuffix("_4bit").removesuffix("_8bit"),
                    "bits": 4,
                    "group_size": 32,
                }
            )
    bits = [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}]
    return [*found, *({"quant_method": "bitsandbytes"} | how for how in bits)]


def change_config(random: Random, config: dict[str, Any]) -> str:
    """config.json."""
    match random.choices(
        ["anywhere", "known", "size", "rope", "quantization", "family", "code", "dtype", "head"],
        [30, 16, 10, 16, 10, 8, 4, 3, 3],
    )[0]:
        case "anywhere":
            return change_anywhere(random, config)
        case "known":
            known = defaults_of(random.choice(FAMILIES)) | {
                "layer_types": ["full_attention"] * 2,
                "tie_encoder_decoder": False,
            }
            return set_known(random, config, sorted(known.items()))
        case "size":
            key = random.choice(SIZES)
            value = config.get(key) or 2
            config[key] = random.choice(
                [0, 1, value + 1, value * 2, value // 2, 2**31, 2**40, 10**8]
                if isinstance(value, int)
                else [2]
            )
            return f"{key} = {config[key]}"
        case "rope":
            return change_rope(random, config)
        case "quantization":
            how = dict(random.choice(quantizations()))
            said = change_anywhere(random, how) if random.random() < 0.5 else ""
            config["quantization_config"] = how
            return f"quantization_config of {shown(how.get('quant_method'))} {said}"
        case "family":
            kind = random.choice(FAMILIES if random.random() < 0.4 else model_types())
            own = {key: config.get(key) for key in SIZES if key in config} if random.random() < 0.7 else {}
            for key, value in (defaults_of(kind) | own).items():
                config[key] = value
            config["architectures"] = random.choice(
                [config.get("architectures"), None, ["NoSuchModel"], [f"{kind.title()}ForCausalLM"]]
            )
            return f"of model_type {kind}{' with its own sizes' if own else ''}"
        case "code":
            config["auto_map"] = random.choice([
                {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
                {"AutoModelForCausalLM": "a/b--own.Model"}, {"AutoConfig": ["own.Config"]},
                {"AutoTokenizer": [None, "own.T"]}, junk(random),
            ])  # fmt: skip
            config["model_type"] = random.choice(["own", "llama", config.get("model_type")])
            return f"auto_map = {shown(config['auto_map'])}, model_type {shown(config['model_type'])}"
        case "dtype":
            key = random.choice(["dtype", "torch_dtype"])
            config[key] = random.choice(
                [
                    "float64",
                    "int8",
                    "float8_e4m3fn",
                    "bfloat16",
                    "torch.float16",
                    "os.system",
                    {"": "float32"},
                    junk(random),
                ]
            )
            return f"{key} = {shown(config[key])}"
        case _:
            key = random.choice(
                ["id2label", "label2id", "num_labels", "problem_type", "architectures", "finetuning_task"]
            )
            config["architectures"] = ["LlamaForSequenceClassification"]
            config[key] = random.choice(
                [
                    junk(random),
                    {"0": "a", "1": "b"},
                    {"x": "a"},
                    {"a": 0},
                    3,
                    "regression",
                    "multi_label_classification",
                ]
            )
            return f"a head with {key} = {shown(config[key])}"


def change_rope(random: Random, config: dict[str, Any]) -> str:
    """RoPE of any kind, whole or not, in either writing."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

    usual: dict[str, Any] = {
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 4.0,
        "original_max_position_embeddings": 64, "attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True, "mrope_section": [2, 3, 3],
    }  # fmt: skip
    keys = [key for key in RopeParameters.__annotations__ if key != "rope_type"]
    rope: dict[str, Any] = {key: usual.get(key, 1.0) for key in keys if random.random() < 0.6}
    for key in list(rope):
        if random.random() < 0.15:
            rope[key] = random.choice(
                [0, -1, 1e-9, 1e30, [], [0.0] * 8, ["x"] * 8, [float(2**31)], junk(random)]
            )
    kinds = [*ROPE_INIT_FUNCTIONS, "default", "su", "mrope", "ntk"]
    rope[random.choice(["rope_type", "rope_type", "type"])] = (
        random.choice(kinds) if random.random() < 0.9 else junk(random)
    )
    value: Any = {"full_attention": rope, "sliding_attention": rope} if random.random() < 0.08 else rope
    key = random.choice(["rope_scaling", "rope_parameters"])
    config.pop("rope_parameters" if random.random() < 0.7 else "", None)
    config[key] = value
    return f"{key} = {dumps(value)[:300]}"


def change_generation_config(random: Random, config: dict[str, Any]) -> str:
    """generation_config.json: every key that transformers has."""
    from transformers import GenerationConfig

    if random.random() < 0.2:
        return change_anywhere(random, config)
    known: dict[str, Any] = dict.fromkeys(GenerationConfig().to_dict()) | {
        "num_return_sequences": 2, "num_beams": 4, "do_sample": True, "temperature": 0.0, "top_p": 2.0,
        "min_p": 0.9, "min_new_tokens": 50, "stop_strings": ["a"], "suppress_tokens": [0],
        "bad_words_ids": [[1]], "forced_eos_token_id": 1, "guidance_scale": 2.0,
        "cache_implementation": "static", "cache_config": {"backend": "quanto"},
        "prompt_lookup_num_tokens": 2, "dola_layers": "low", "watermarking_config": {"greenlist_ratio": 0.2},
        "exponential_decay_length_penalty": [1, 2.0], "penalty_alpha": 0.6, "return_dict_in_generate": True,
        "output_scores": True, "max_time": 0.0, "assistant_early_exit": 1, "token_healing": True,
        "sequence_bias": [[[1], -1.0]], "eos_token_id": [1, 2], "pad_token_id": -1, "max_length": 1,
        "custom_generate": "x", "compile_config": {"mode": "max-autotune"}, "constraints": [1],
        "force_words_ids": [[1]], "num_beam_groups": 2,
    }  # fmt: skip
    return set_known(random, config, sorted(known.items()))


def change_adapter_config(random: Random, config: dict[str, Any]) -> str:
    """adapter_config.json: peft's kinds, LoRA's keys, expressions, modules that aren't there."""
    from peft import LoraConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    modules = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
        "embed_tokens",
        "norm",
        "x",
        "",
    ]
    some = random.sample(modules, random.randrange(5))
    match random.choices(["anywhere", "known", "kind", "modules", "sizes"], [25, 30, 15, 20, 10])[0]:
        case "anywhere":
            return change_anywhere(random, config)
        case "known":
            known = json.loads(json.dumps(LoraConfig().to_dict(), default=str)) | {
                "layer_replication": [[0, 2], [1, 2]], "loftq_config": {"loftq_bits": 4}, "corda_config": {},
                "arrow_config": {},
                "init_lora_weights": random.choice(
                    ["pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "orthogonal", "gaussian", "x"]
                ),
                "bias": random.choice(["all", "lora_only"]), "use_dora": True, "use_qalora": True, "lora_bias": True,
                "fan_in_fan_out": True,
                "alora_invocation_tokens": [1], "target_parameters": ["q_proj.weight"], "trainable_token_indices": [0, 10**9],
                "auto_mapping": {"base_model_class": "x", "parent_library": "os"},
                "task_type": random.choice(["SEQ_CLS", "SEQ_2_SEQ_LM", "x"]),
            }  # fmt: skip
            return set_known(random, config, sorted(known.items()))
        case "kind":
            kind = random.choice([*PEFT_TYPE_TO_CONFIG_MAPPING, "NOPE"])
            kind = str(getattr(kind, "value", kind))
            if random.random() < 0.5:
                try:
                    own = PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM").to_dict()
                    config.update(json.loads(json.dumps(own, default=str)))
                except Exception:  # noqa: BLE001, S110 - a kind that needs arguments, or is none
                    pass
            config["peft_type"] = kind
            return f"peft_type = {kind}"
        case "modules":
            key = random.choice(
                [
                    "target_modules",
                    "exclude_modules",
                    "modules_to_save",
                    "layers_pattern",
                    "rank_pattern",
                    "alpha_pattern",
                ]
            )
            expressions = [
                ".*_proj",
                "all-linear",
                "((((a|[a-z_.0-9])+)+)+)+!",
                "(",
                "",
                ".*",
                "(?P<a>x)(?P=a)",
                "q_proj|v_proj",
                "\\",
            ]
            config[key] = random.choice(
                [
                    some,
                    random.choice(expressions),
                    {random.choice(expressions): random.choice([0, 2, -1, 2.5, 10**7, "2"])},
                ]
            )
            return f"{key} = {shown(config[key])}"
        case _:
            key = random.choice(
                [
                    "r",
                    "lora_alpha",
                    "lora_dropout",
                    "layers_to_transform",
                    "qalora_group_size",
                    "num_virtual_tokens",
                ]
            )
            config[key] = random.choice(
                [0, -1, 1, 3, 65_536, 10**9, 2.5, [0], [0, 99], [-1], "2", True, None]
            )
            return f"{key} = {shown(config[key])}"


def change_index(random: Random, index: dict[str, Any]) -> str:
    """model.safetensors.index.json: names that leave the folder, that are absent, that are no text."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or random.random() < 0.3:
        return change_anywhere(random, index)
    tensor = random.choice(list(names))
    files = [
        *names.values(),
        "../x.safetensors",
        "/etc/passwd",
        "gone.safetensors",
        "",
        ".",
        "config.json",
        "a\0b",
        "a\\b",
        "model.bin",
        "é" * 300,
    ]
    if random.random() < 0.2:
        del names[tensor]
        return f"weight_map lacks {tensor}"
    tensor = random.choice([tensor, tensor, "extra.weight", "", "model.layers.9.x"])
    names[tensor] = random.choice(files) if random.random() < 0.8 else junk(random)
    return f"weight_map.{tensor} = {shown(names[tensor])}"


def change_special_tokens(random: Random, document: dict[str, Any]) -> str:
    """special_tokens_map.json."""
    key = random.choice(
        ["bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens", "x"]
    )
    document[key] = random.choice([odd_token(random), [odd_token(random)], junk(random)])
    return f"{key} = {shown(document[key])}"


def change_added_tokens(random: Random, document: dict[str, Any]) -> str:
    """added_tokens.json: text -> id."""
    text = random.choice(["<x>", "", "a", "é", "<|im_end|>", " "])
    document[text] = random.choice([0, 1, 400, 401, -1, 2**31, 2**32, 2**64, 1.5, "5", junk(random)])
    return f"{text!r} = {shown(document[text])}"


JSON_CHANGES: dict[str, Callable[[Random, dict[str, Any]], str]] = {
    "config.json": change_config,
    "generation_config.json": change_generation_config,
    "tokenizer_config.json": change_tokenizer_config,
    "tokenizer.json": change_tokenizer,
    "special_tokens_map.json": change_special_tokens,
    "added_tokens.json": change_added_tokens,
    "adapter_config.json": change_adapter_config,
    "model.safetensors.index.json": change_index,
}


def change_file(random: Random, path: Path) -> str:
    """Change a file in the way of its kind, or its bytes; what was done, in words."""
    if path.is_symlink() or path.is_dir() or (path.is_file() and random.random() < 0.07):
        return damage(random, path) if path.is_file() else "nothing"
    if path.suffix == ".safetensors":
        return change_tensors(random, path)
    if path.suffix == ".jinja":
        path.parent.mkdir(exist_ok=True)
        text = template(random)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return shown(text)
    if path.suffix == ".json":
        return change_json(random, path, JSON_CHANGES.get(path.name, change_anywhere))
    if path.suffix == ".yaml":
        return _change_yaml(random, path)
    return damage(random, path)


def _change_yaml(random: Random, path: Path) -> str:
    """A value, a key or a line of a lock."""
    lines = path.read_text(errors="surrogateescape").splitlines() if path.is_file() else []
    if not lines:
        return damage(random, path)
    place = random.randrange(len(lines))
    key, colon, _ = lines[place].partition(": ")
    match random.choice(["value", "value", "value", "remove", "indent", "twice", "text"]):
        case "value" if colon:
            lines[place] = f"{key}: {dumps(junk(random))[:5000]}"
        case "remove":
            del lines[place]
        case "indent":
            lines[place] = "  " + lines[place]
        case "twice":
            lines.insert(place, lines[place])
        case _:
            lines.insert(
                place,
                random.choice(
                    [
                        "*x",
                        "&x [*x]",
                        "!!python/object:os.system {}",
                        "? {}",
                        "- 1",
                        "\t",
                        "x: [",
                        "%TAG",
                        "---",
                    ]
                ),
            )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return f"line {place + 1}: {lines[min(place, len(lines) - 1)][:80]!r}"
