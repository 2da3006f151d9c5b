"""Commands by which vLLM or llama.cpp serve the same models with the same template."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.models.adapters.config_file import LORA, checked_adapter_config
from finetune.recipe.schema.model import GgufBase
from finetune.runs.commands import shell_command
from finetune.runs.target import Target

VLLM, LLAMA_CPP = "vllm", "llama.cpp"
API_KEYS = {VLLM: "VLLM_API_KEY", LLAMA_CPP: "LLAMA_API_KEY"}
"""The variables in which they look for the key that clients must send."""
TEMPLATE = "chat_template.jinja"
GGUF_FILE = "model.gguf"
"""In the folder that finetune export writes."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's --max-lora-rank that every version takes."""


def commands_of(engine: str, targets: Mapping[str, Target], host: str, port: int) -> list[str]:
    """The lines to be typed, one after the other. Raises FinetuneError for models that the engine can't
    serve as they are."""
    if engine == VLLM:
        return [shlex.join(vllm_command(targets, host, port))]
    return llama_cpp_commands(targets, host, port)


def vllm_command(targets: Mapping[str, Target], host: str, port: int) -> list[str]:
    """vLLM's command. It serves one base, with one template, and plain LoRA on it."""
    bases = {(str(target.model.base), target.model.revision) for target in targets.values()}
    if len(bases) > 1:
        raise FinetuneError("vLLM serves one base, and these have several: serve those of one base together.")
    for name, target in targets.items():
        if reasons := list(_not_for_vllm(target)):
            raise FinetuneError(f"vLLM can't serve {name}: {'; '.join(reasons)}. {_merge_first(target)}")
    ((base, revision),) = bases
    whole = [name for name, target in targets.items() if target.adapter is None]
    adapters = {name: target.adapter for name, target in targets.items() if target.adapter is not None}
    command = ["vllm", "serve", base, "--host", host, "--port", str(port), "--generation-config", "vllm"]
    command += ["--revision", revision] if revision is not None else []
    command += ["--served-model-name", *whole] if whole else []
    if not adapters:
        return command
    ranks = [checked_adapter_config(folder)["r"] for folder in adapters.values()]
    rank = next(known for known in VLLM_RANKS if known >= max(ranks))
    command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
    command += ["--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]
    return [*command, *_template(base, whole, adapters)]


def _not_for_vllm(target: Target) -> Iterator[str]:
    """Why vLLM can't serve a model as it is."""
    if not isinstance(target.model.base, str):
        yield "its base is a GGUF file"
    if target.adapter is None:
        return
    config = checked_adapter_config(target.adapter)
    if target.quantization is not None:
        yield f"it was trained on a base in {target.quantization}"
    if target.model.rope_scaling is not None:
        yield "its positions are scaled otherwise than its base's"
    if config["peft_type"] != LORA:
        yield f"its adapter is of type {config['peft_type']}"
    kinds = {
        "use_dora": "it is DoRA",
        "modules_to_save": "it has modules that were trained whole",
        "trainable_token_indices": "it has rows of new tokens",
        "rank_pattern": "its layers have several ranks",
        "alpha_pattern": "its layers have several alphas",
        "lora_bias": "its matrices have a bias",
    }
    yield from (reason for key, reason in kinds.items() if config.get(key))
    if config["r"] > VLLM_RANKS[-1]:
        yield f"its rank is {config['r']}, and {VLLM_RANKS[-1]} is the largest"


def _merge_first(target: Target) -> str:
    run = target.run or target.adapter
    if run is None:
        return "Name a model folder."
    command = shell_command("merge", run, *_other_base(target), "--output", "FOLDER")
    return f"Merge it, and serve the result: {command}"


def _template(base: str, whole: list[str], adapters: Mapping[str, Path]) -> list[str]:
    """The option that names the template; vLLM has one for a base and its adapters."""
    own = {name: folder / TEMPLATE for name, folder in adapters.items()} | {
        name: Path(base) / TEMPLATE for name in whole
    }
    texts = {path.read_text() if path.is_file() else None for path in own.values()}
    if len(texts) > 1:
        raise FinetuneError(
            f"vLLM has one chat template for a base and its adapters, and those of {', '.join(own)} differ: "
            "serve them one by one."
        )
    path = next(iter(own.values()))
    return ["--chat-template", str(path)] if path.is_file() else []


def llama_cpp_commands(targets: Mapping[str, Target], host: str, port: int) -> list[str]:
    """The GGUF file, which has the template in it, and llama.cpp's command."""
    if len(targets) > 1:
        raise FinetuneError("llama.cpp's server serves one model: name one.")
    ((name, target),) = targets.items()
    model = target.run or target.adapter or target.model.base
    source = Path(str(model)) if target.adapter is not None or Path(str(model)).exists() else str(model)
    folder = Path(f"{name.rpartition('/')[2]}-gguf")
    export = [source, *_other_base(target), "--format", "gguf", "--output", folder]
    serve = ["llama-server", "--model", str(folder / GGUF_FILE), "--alias", name, "--jinja"]
    return [shell_command("export", *export), shlex.join([*serve, "--host", host, "--port", str(port)])]


def _other_base(target: Target) -> list[str]:
    """The option by which the base was named, where it was."""
    if target.named_in != "--base":
        return []
    base = target.model.base
    return ["--base", str(base.gguf if isinstance(base, GgufBase) else base)]
