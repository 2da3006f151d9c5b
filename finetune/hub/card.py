"""The model card of a result: base and data with their licences, the recipe, figures, checks, how to load it.
Loads no torch.

Its first lines are metadata that the hub reads; see https://huggingface.co/docs/hub/model-cards.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from data_prep.config import HubSource
from data_prep.secrets import scrubbed
from data_prep.text import shown
from finetune.errors import ModelError, library_refusals
from finetune.hub.result import Result
from finetune.models.bases.card import CARD, FRONT_MATTER
from finetune.models.bases.folder import read_config
from finetune.models.bases.hub import is_hub_id
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema.adapter import PEFT_KEYS
from finetune.runs.compare import UNROUNDED_LOSS
from finetune.runs.folder import RunFolder

OURS = "<!-- finetune writes what follows, and writes it anew when it is pushed -->"
Licences = Callable[[str, str], str | None]
"""The licence of a repository of the hub, by kind (model, dataset) and name; None where it says none."""


def write_result_card(run: RunFolder, lock: Lock, summary: dict[str, Any]) -> None:
    """README.md beside the weights that a run has trained, from what is known here: nobody is asked for
    licences."""
    full = lock.recipe.adapter.method == "full"
    result = Result(
        run.model if full else run.adapter, "model" if full else "adapter", (), (), lock=lock, summary=summary
    )
    card = card_of(result, run.name, lambda kind, name: None, place=f"FOLDER_OF_THE_{result.kind.upper()}")
    (result.folder / CARD).write_text(card, encoding="utf-8")


def write_merged_card(folder: Path, run: RunFolder) -> None:
    """Add what the lock of its run says to the README.md of a merged model."""
    result = Result(folder, "model", (), (), lock=read_lock(run.lock_path), summary=run.outcome())
    card = card_of(result, folder.name, lambda kind, name: None, place="FOLDER_OF_THE_MODEL")
    (folder / CARD).write_text(card, encoding="utf-8")


def card_of(result: Result, name: str, licences: Licences, *, place: str | None = None) -> str:
    """The text of README.md. A model's own is kept, with what it lacks.

    `name` is OWNER/NAME on the hub, or what the result is called; `place` is what loads it, where that isn't
    its name.
    """
    written = _written(result)
    data = ModelCardData(**_metadata(result, licences), ignore_metadata_errors=True)
    own = FRONT_MATTER.match(written)
    body = (written[own.end() :] if own is not None else written).partition(OURS)[0].strip()
    if not body:
        body = f"# {name.rpartition('/')[2]}"
    sections = [
        section for section in (_facts(result, licences), _training(result), _results(result)) if section
    ]
    front = _joined_front(own[1] or "" if own is not None else "", data)
    return scrubbed(
        "\n\n".join([f"---\n{front}\n---", body, OURS, *sections, _loading(result, place or name)]) + "\n"
    )


def _written(result: Result) -> str:
    """README.md as it lies there; nothing of an adapter, whose is peft's empty form. Raises ModelError where
    it is no text."""
    path = result.folder / CARD
    if result.kind == "adapter" or not path.is_file():
        return ""
    with library_refusals(f"{path} can't be read"):
        return path.read_text(encoding="utf-8-sig")


def _joined_front(own: str, data: ModelCardData) -> str:
    """The metadata that is there, and ours where it says nothing. Raises ModelError where it can't be
    read."""
    from ruamel.yaml import YAML

    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    with library_refusals(f"the metadata at the beginning of {CARD} can't be read"):
        there = yaml.load(own) if own.strip() else {}
    if not isinstance(there, dict):
        raise ModelError(f"the metadata at the beginning of {CARD} is {shown(there)}; expected keys.")
    ours = {key: value for key, value in data.to_dict().items() if value is not None}
    yaml.dump(ours | there, stream)
    return stream.getvalue().strip()


def base_of(result: Result) -> dict[str, str]:
    """Kind, name and commit of the base; nothing where nobody knows."""
    if result.lock is not None:
        return dict(result.lock.base)
    base = result.notes.get("base")
    if isinstance(base, dict):
        return base
    if not base:
        return {}
    here = Path(base).is_absolute() or Path(base).exists()
    return {"kind": "folder" if here else "hub" if is_hub_id(base) else "other", "name": str(base)}


def data_sets(lock: Lock) -> list[str]:
    """The data sets of the hub that a run was trained on."""
    return [source.dataset for source in lock.recipe.data.train if isinstance(source, HubSource)]


def _metadata(result: Result, licences: Licences) -> dict[str, Any]:
    base, classifies = base_of(result), _classifies(result)
    relation = {"adapter": "adapter", "gguf": "quantized"}.get(result.kind, "finetune")
    if result.kind == "model" and read_config(result.folder).get("quantization_config"):
        relation = "quantized"
    on_hub = base.get("kind") == "hub"
    licence = licences("model", base["name"]) if on_hub else None
    return {
        "base_model": base["name"] if on_hub else None,
        "base_model_relation": relation if on_hub else None,
        "datasets": (data_sets(result.lock) or None) if result.lock is not None else None,
        "library_name": {"adapter": "peft", "gguf": "gguf"}.get(result.kind, "transformers"),
        "license": licence,
        "pipeline_tag": "text-classification" if classifies else "text-generation",
        "tags": [_adapter(result)] if result.kind == "adapter" else None,
    }


def _adapter(result: Result) -> str:
    method = result.lock.recipe.adapter.method if result.lock is not None else "lora"
    return method if method in PEFT_KEYS else "lora"


def _classifies(result: Result) -> bool:
    return result.lock is not None and bool(result.lock.recipe.model.head)


def _facts(result: Result, licences: Licences) -> str:
    """What it was made from."""
    base, lines = base_of(result), []
    if base:
        commit = f" at {base['commit']}" if base.get("commit") else ""
        digest = f" (SHA-256 {base['sha256']})" if base.get("sha256") else ""
        lines.append(f"- base: {_short(base)}{commit}{digest}, {_licence(base, licences)}")
    if result.lock is not None:
        names = data_sets(result.lock)
        lines += [
            f"- data: {_without_folder(source)}, SHA-256 {sha}" for source, sha in result.lock.data.items()
        ]
        lines += [f"- data set {name}: {licences('dataset', name) or 'no licence named'}" for name in names]
    return "## Made from\n\n" + "\n".join(lines) if lines else ""


def _licence(base: dict[str, str], licences: Licences) -> str:
    found = licences("model", base["name"]) if base.get("kind") == "hub" else None
    return f"licence {found}" if found else "its licence is not known here: look at the base"


def _short(base: dict[str, str]) -> str:
    """A base's name without the folders of this machine."""
    return Path(base["name"]).name if base.get("kind") == "folder" else base["name"]


def _without_folder(source: str) -> str:
    """A source's name without the folders of this machine."""
    return Path(source).name if source.startswith("/") else source


def _training(result: Result) -> str:
    """The recipe: each key that it says itself, or all where nobody knows which those are."""
    lock = result.lock
    if lock is None:
        return ""
    values = dict(_leaves(lock.without_secrets()["recipe"]))
    said = {key for key, origin in lock.origins.items() if origin != "default"} or set(values)
    lines = [
        f"    {key}: {_shown(value)}"
        for key, value in values.items()
        if key in said and value is not None and not key.startswith(("output.", "tracking."))
    ]
    device, versions, processes = lock.device, lock.versions, lock.device.get("processes", 1)
    how = f"on {device.get('name', device.get('type'))}, {device.get('precision')}" + (
        f", {processes} processes" if processes > 1 else ""
    )
    counts = ", ".join(
        f"{result.summary[key]:,} {key}" for key in ("steps", "tokens") if key in result.summary
    )
    packages = ", ".join(f"{name} {versions.get(name)}" for name in ("torch", "transformers", "peft"))
    title = "## Training\n\nThe recipe" + (", without its defaults:" if lock.origins else ":")
    return "\n".join([title, "", *lines, "", f"{counts} {how}; {packages}.".lstrip()])


def _shown(value: Any) -> str:
    """A recipe's value in one line."""
    return json.dumps(_without_folder(value) if isinstance(value, str) else value, ensure_ascii=False)


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A recipe's values as a.b.0.c, value."""
    parts = dict(enumerate(values)) if isinstance(values, list) else values
    if not isinstance(parts, dict) or not parts:
        yield name, values
        return
    for key, value in parts.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _results(result: Result) -> str:
    """Losses and metrics with their intervals."""
    summary, lines = result.summary, list[str]()
    # Where training had the base in FP8, a user of the result has it as it was loaded.
    after = UNROUNDED_LOSS if UNROUNDED_LOSS in summary else "evaluation_loss"
    losses = [("before", "evaluation_loss_before"), ("after", after)]
    found = [
        f"{summary[key]:.4f} {when}" for when, key in losses if isinstance(summary.get(key), int | float)
    ]
    if found:
        lines.append(f"| evaluation loss (nats per token) | {' -> '.join(found)} | |")
    for name, entry in (summary.get("metrics") or {}).items():
        if entry.get("value") is not None:
            interval = f"{entry['low']:.4f} to {entry['high']:.4f}" if entry.get("low") is not None else ""
            lines.append(f"| {name} ({entry.get('rows', '?')} rows) | {entry['value']:.4f} | {interval} |")
    if not lines:
        return ""
    return "\n".join(["## Results", "", "| | value | 95 % interval |", "|---|---|---|", *lines])


def _loading(result: Result, name: str) -> str:
    """A program that loads it."""
    kind = "SequenceClassification" if _classifies(result) else "CausalLM"
    on_hub = base_of(result).get("kind") == "hub"
    if result.kind == "gguf":
        lines = [f"llama-cli -hf {name}"]
    elif result.kind == "adapter" and not on_hub:
        lines = [
            "from peft import PeftModel",
            f"from transformers import AutoModelFor{kind}, AutoTokenizer",
            "",
            f'base = AutoModelFor{kind}.from_pretrained("FOLDER_OF_THE_BASE")',
            f'model = PeftModel.from_pretrained(base, "{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        ]
    else:
        package, auto = ("peft", f"AutoPeftModelFor{kind}")
        if result.kind == "model":
            package, auto = ("transformers", f"AutoModelFor{kind}")
        lines = [
            f"from {package} import {auto}",
            "from transformers import AutoTokenizer",
            "",
            f'model = {auto}.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        ]
    return "\n".join(["## Loading it", "", *(f"    {line}".rstrip() for line in lines)])
