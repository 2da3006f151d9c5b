"""A recipe as another tool's file: for who leaves, or wants to compare. The same three lists."""

from typing import Any

from finetune.conversion.back_data import data
from finetune.conversion.draft import Line
from finetune.conversion.forward import Conversion
from finetune.conversion.given import ConvertError
from finetune.conversion.writing import flow
from finetune.recipe.load import LoadedRecipe, leaves
from finetune.recipe.reading.tree import dotted
from finetune.recipe.schema.optimizers import OPTIMIZERS

BACK = ("axolotl", "llamafactory", "trl")
KEYS: dict[str, tuple[str, str, str]] = {
    # ours: Axolotl's, LLaMA-Factory's, TRL's
    "model.base": ("base_model", "model_name_or_path", "model_name_or_path"),
    "model.revision": ("revision_of_model", "model_revision", "model_revision"),
    "adapter.rank": ("lora_r", "lora_rank", "lora_r"),
    "adapter.alpha": ("lora_alpha", "lora_alpha", "lora_alpha"),
    "adapter.dropout": ("lora_dropout", "lora_dropout", "lora_dropout"),
    "adapter.use_rslora": ("peft_use_rslora", "use_rslora", "use_rslora"),
    "adapter.use_dora": ("peft_use_dora", "use_dora", "use_dora"),
    "adapter.modules_to_save": ("lora_modules_to_save", "additional_target", "lora_modules_to_save"),
    "adapter.continue_from": ("lora_model_dir", "adapter_name_or_path", ""),
    "data.max_length_tokens": ("sequence_len", "cutoff_len", "max_length"),
    "data.evaluation.fraction": ("val_set_size", "val_size", ""),
    "data.evaluation.rows": ("val_set_size", "val_size", ""),
    "train.learning_rate": ("learning_rate", "learning_rate", "learning_rate"),
    "train.epochs": ("num_epochs", "num_train_epochs", "num_train_epochs"),
    "train.max_steps": ("max_steps", "max_steps", "max_steps"),
    "train.micro_batch_size": (
        "micro_batch_size",
        "per_device_train_batch_size",
        "per_device_train_batch_size",
    ),
    "train.seed": ("seed", "seed", "seed"),
    "train.warmup_ratio": ("warmup_ratio", "warmup_ratio", "warmup_ratio"),
    "train.warmup_steps": ("warmup_steps", "warmup_steps", "warmup_steps"),
    "train.weight_decay": ("weight_decay", "weight_decay", "weight_decay"),
    "train.max_gradient_norm": ("max_grad_norm", "max_grad_norm", "max_grad_norm"),
    "train.label_smoothing": ("label_smoothing_factor", "label_smoothing_factor", "label_smoothing_factor"),
    "train.adam_epsilon": ("adam_epsilon", "adam_epsilon", "adam_epsilon"),
    "train.loraplus_lr_ratio": ("loraplus_lr_ratio", "loraplus_lr_ratio", ""),
    "train.embedding_learning_rate": ("embedding_lr", "", ""),
    "train.activation_checkpointing": (
        "gradient_checkpointing",
        "gradient_checkpointing",
        "gradient_checkpointing",
    ),
    "train.log_every": ("logging_steps", "logging_steps", "logging_steps"),
    "train.evaluate_every": ("eval_steps", "eval_steps", "eval_steps"),
    "train.save_every": ("save_steps", "save_steps", "save_steps"),
    "train.keep_checkpoints": ("save_total_limit", "save_total_limit", "save_total_limit"),
    "evaluate.batch_size": ("eval_batch_size", "per_device_eval_batch_size", "per_device_eval_batch_size"),
    "tracking.project": ("wandb_project", "", ""),
    "output.folder": ("output_dir", "output_dir", "output_dir"),
    "output.name": ("wandb_name", "run_name", "run_name"),
}
SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_minimum": "cosine_with_min_lr",
}
HERE_ONLY = (
    "tracking.",
    "evaluate.",
    "train.rehearsal",
    "data.on_bad_row",
    "data.allow_findings",
    "train.log_every",
)


class Back:
    """The file that is being written, and what became of each key of the recipe."""

    def __init__(self, loaded: LoadedRecipe, tool: str, processes: int):
        self.loaded, self.tool, self.processes = loaded, tool, processes
        self.values: dict[str, tuple[Any, str]] = {}
        self.lines: list[Line] = []
        self.plain = loaded.recipe.model_dump(mode="json")
        self.seen: set[str] = set()

    def written(self, path: str) -> bool:
        """Whether the user wrote the key."""
        return self.loaded.origins.get(path, "default") != "default"

    def put(self, key: str, value: Any, path: str) -> None:
        """A line of their file, and the key that it comes from."""
        self.values[key] = value, path

    def told(self, path: str, fate: Any, theirs: str = "", how: str = "", *, changes: bool = False) -> None:
        """What became of a key, of those that the user wrote."""
        self.seen.add(path)
        if self.written(path):
            self.lines.append(Line(fate, path, self.loaded.origins[path], theirs, how, changes))


def convert_back(loaded: LoadedRecipe, tool: str, *, processes: int = 1) -> Conversion:
    """A recipe as the file of Axolotl, LLaMA-Factory or TRL's command line, with all that it decides written
    out, our defaults too. Raises ConvertError for a tool that recipes aren't written for, and a batch that
    doesn't divide over the processes."""
    if tool not in BACK:
        raise ConvertError(f"--to {tool}: expected {', '.join(BACK[:-1])} or {BACK[-1]}")
    back = Back(loaded, tool, processes)
    for step in (_model, _method, data, _batch, _schedule, _flags, _rest):
        step(back)
    title = f"# Converted from the recipe {loaded.name}. Behind each line is the key that it came from."
    body = [f"{f'{key}: {flow(value)}':<56}  # {path}" for key, (value, path) in back.values.items()]
    return Conversion.of(tool, "\n".join([title, "", *body, ""]), back.lines)


def _model(back: Back) -> None:
    recipe = back.loaded.recipe
    if not isinstance(recipe.model.base, str):
        raise ConvertError(
            "model.base is a GGUF file, which these tools don't train; name a folder or a hub id"
        )
    if recipe.model.head is not None and recipe.objective.kind != "reward":  # which brings its own
        raise ConvertError("model.head: a classifier; its training is not written for other tools")
    template = recipe.model.chat_template
    if template is not None:
        key = "template" if back.tool == "llamafactory" else "chat_template" if back.tool == "axolotl" else ""
        if key and "\n" not in template and "{" not in template:
            back.put(key, template, "model.chat_template")
            back.told("model.chat_template", "carried", key)
        else:
            back.told("model.chat_template", "dropped", how="no such template there", changes=True)
    elif back.tool == "llamafactory":
        back.put(
            "template",
            "default",
            "model.chat_template: LLaMA-Factory has no tokenizer's own: choose the family's",
        )


def _method(back: Back) -> None:
    adapter = back.loaded.recipe.adapter
    method = adapter.method
    key = {"axolotl": "adapter", "llamafactory": "finetuning_type", "trl": "use_peft"}[back.tool]
    value: Any = {
        "axolotl": method,
        "llamafactory": "full" if method == "full" else "lora",
        "trl": method != "full",
    }[back.tool]
    if not (back.tool == "axolotl" and method == "full"):
        back.put(key, value, "adapter.method")
    if method == "qlora":
        eight = adapter.quantization == "int8"
        bits = {
            "axolotl": "load_in_8bit" if eight else "load_in_4bit",
            "trl": "load_in_8bit" if eight else "load_in_4bit",
        }
        if back.tool == "llamafactory":
            back.put("quantization_bit", 8 if eight else 4, "adapter.method")
        else:
            back.put(bits[back.tool], True, "adapter.method")
        if back.tool == "axolotl" and eight:
            back.put("adapter", "lora", "adapter.method")
        double = {"llamafactory": "double_quantization", "trl": "use_bnb_nested_quant"}.get(back.tool)
        if double and not eight:
            back.put(double, adapter.double_quantization, "adapter.double_quantization")
    for path in ("adapter.method", "adapter.quantization", "adapter.double_quantization"):
        back.told(path, "carried", key)
    if method == "full":
        back.seen |= {path for path in back.loaded.origins if path.startswith("adapter.")}
        return
    targets = adapter.target_modules
    names = {"axolotl": "lora_target_modules", "llamafactory": "lora_target", "trl": "lora_target_modules"}[
        back.tool
    ]
    if targets == "all-linear":
        if back.tool == "axolotl":
            names = "lora_target_linear"
        back.put(
            names,
            {"axolotl": True, "llamafactory": "all", "trl": "all-linear"}[back.tool],
            "adapter.target_modules",
        )
    else:
        listed = list(targets)
        back.put(names, ",".join(listed) if back.tool == "llamafactory" else listed, "adapter.target_modules")
    back.told("adapter.target_modules", "carried", names)
    if adapter.init != "default":
        back.told("adapter.init", "dropped", how="not a key there", changes=True)
    back.seen.add("adapter.init")


def _batch(back: Back) -> None:
    train = back.loaded.recipe.train
    wrong = train.uneven_over(back.processes)
    if wrong is not None:
        raise ConvertError(wrong)
    steps = train.global_batch_size // (train.micro_batch_size * back.processes)
    back.put(
        "gradient_accumulation_steps",
        steps,
        f"train.global_batch_size {train.global_batch_size} over {back.processes} process(es)",
    )
    back.told("train.global_batch_size", "carried", "gradient_accumulation_steps")


def _schedule(back: Back) -> None:
    train = back.loaded.recipe.train
    key = "lr_scheduler" if back.tool == "axolotl" else "lr_scheduler_type"
    meant = SCHEDULES.get(train.schedule)
    if meant is None:
        back.told("train.schedule", "dropped", how=f"{train.schedule} has no such name there", changes=True)
    else:
        if train.schedule == "cosine_with_minimum" and back.tool == "axolotl":
            meant = "cosine"
        back.put(key, meant, "train.schedule")
        back.told("train.schedule", "carried", key)
    if train.schedule == "cosine_with_minimum":
        fraction = train.minimum_learning_rate_fraction
        name = "cosine_min_lr_ratio" if back.tool == "axolotl" else "lr_scheduler_kwargs"
        back.put(
            name,
            fraction if back.tool == "axolotl" else {"min_lr_rate": fraction},
            "train.minimum_learning_rate_fraction",
        )
        back.told("train.minimum_learning_rate_fraction", "carried", name)
    optimizer = "optimizer" if back.tool == "axolotl" else "optim"
    if train.optimizer == "adam" and train.weight_decay:
        raise ConvertError(
            f"train.optimizer: adam couples train.weight_decay, and {back.tool} has no such optimizer; take "
            "adamw, or no decay"
        )
    plain = "adamw" if train.optimizer == "adam" else train.optimizer  # which without decay is the same
    back.put(optimizer, OPTIMIZERS.get(plain, plain), "train.optimizer")
    back.told("train.optimizer", "carried", optimizer)
    for key, beta in zip(("adam_beta1", "adam_beta2"), train.adam_betas, strict=True):
        back.put(key, beta, "train.adam_betas")
    back.told("train.adam_betas", "carried", "adam_beta1, adam_beta2")


def _flags(back: Back) -> None:
    precision = back.loaded.recipe.train.precision
    back.put(
        "bf16",
        {"auto": "auto" if back.tool == "axolotl" else True, "bf16": True}.get(precision, False),
        "train.precision",
    )
    if precision == "fp16":
        back.put("fp16", True, "train.precision")
    back.told("train.precision", "carried", "bf16")
    noise = back.plain["train"].get("neftune_alpha")
    if noise is not None:
        back.put("neftune_noise_alpha", noise, "train.neftune_alpha")
        back.told(
            "train.neftune_alpha",
            "otherwise",
            "neftune_noise_alpha",
            "the noise is by document here, by padded row there",
            changes=True,
        )
    tracker = back.plain["tracking"]["tracker"]
    if tracker in ("wandb", "none") and back.tool != "axolotl":
        back.put("report_to", tracker, "tracking.tracker")
        back.told("tracking.tracker", "carried", "report_to")
    for what, key in (("evaluate_every", "eval_strategy"), ("save_every", "save_strategy")):
        value = back.plain["train"].get(what)
        if isinstance(value, str) and value in ("1 epoch", "never"):
            back.put(key, "epoch" if value == "1 epoch" else "no", f"train.{what}")
            back.told(f"train.{what}", "carried", key)
        elif isinstance(value, str) and value.endswith("%"):
            back.put(key.replace("strategy", "steps"), float(value[:-1]) / 100, f"train.{what}")
            back.told(f"train.{what}", "carried", key)
        elif isinstance(value, str):
            back.told(f"train.{what}", "dropped", how=f"{value} can't be said there", changes=False)
        if (
            what == "evaluate_every"
            and value is not None
            and value not in ("1 epoch", "never")
            and back.tool != "axolotl"
        ):
            back.put("eval_strategy", "steps", "train.evaluate_every")


def _rest(back: Back) -> None:
    index = BACK.index(back.tool)
    for location in leaves(back.plain):
        path = dotted(location)
        if path in back.seen:
            continue
        here: Any = back.plain
        for part in location:
            here = here[int(part)] if isinstance(here, list) else here[part]
        key = KEYS.get(path, ("", "", ""))[index]
        if key and here not in (None, [], ""):
            back.put(key, here, path)
            back.told(path, "carried", key)
        elif here is None or not back.written(path):
            back.seen.add(path)
        elif path.startswith(HERE_ONLY):
            back.told(path, "otherwise", how="only here; the training is the same")
        else:
            back.told(path, "dropped", how=f"not a key of {back.tool}", changes=True)
