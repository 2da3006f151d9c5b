"""finetune inspect: what a base is made of, and what a recipe would train of it."""

from typing import Annotated, Any

import typer

from finetune.cli.common import JsonOption, OverridesArgument, out, print_json


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RECIPE", help="A recipe, a model folder, a hub id or a run.")
    ],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is made of.

    Sizes, attention, positions and parameters, from config.json and headers; no weights are loaded.
    """
    from finetune import api

    facts = api.inspect(target, overrides or [])
    if as_json:
        print_json(facts)
        return
    for name, value in lines_of(facts):
        out(f"{name:<18} {value}")


def lines_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as a person reads them: (name, value) a line."""
    rope = facts["rope"]
    scaling = "".join(f", {key} {value}" for key, value in rope["scaling"].items())
    lines = [
        ("base", _base(facts["base"])),
        ("architecture", f"{facts['architecture']} ({facts['model_type']})"),
        ("layers", str(facts["layers"])),
        ("width", f"{facts['width']:,}"),
        ("feed-forward width", f"{facts['feed_forward_width']:,}"),
        ("attention", _attention(facts)),
        ("head width", str(facts["head_width"])),
        (
            "key-value cache",
            f"{facts['cache_bytes_per_token']:,} bytes a token in 16 bit; "
            f"{facts['cache_bytes_full_context'] / 1e9:,.2f} GB for the whole context",
        ),
        ("context", f"{facts['context_tokens']:,} tokens"),
        ("RoPE", f"{rope['kind']}, theta {rope['theta']:,.0f}{scaling}"),
        ("RMSNorm eps", f"{facts['rms_norm_eps']:g}" if facts["rms_norm_eps"] is not None else "not given"),
        *([("multipliers", _multipliers(facts["multipliers"]))] if facts["multipliers"] else []),
        ("vocabulary", f"{facts['vocabulary']:,}"),
        ("head", "tied to the embedding" if facts["tied_head"] else "its own weights"),
        ("stored", _stored(facts)),
        *([("pruned", _pruned(facts["pruned"]))] if facts["pruned"] else []),
        ("parameters", f"{facts['parameters']:,} (from {facts['parameters_from']})"),
    ]
    if "trainable_parameters" in facts:
        how = facts["method"] + (f" in {facts['loaded_in']}" if facts["loaded_in"] else "")
        if facts["rank"] is not None:
            ranks = " to ".join(f"{rank}" for rank in sorted({min(facts["ranks"]), max(facts["ranks"])}))
            how += f", rank {ranks}, {_targets(facts['targets'])}"
            if facts["excluded"]:
                how += f" without {', '.join(facts['excluded'])}"
        if facts["adapted_layers"] is not None:
            how += f" of layers {', '.join(map(str, facts['adapted_layers']))}"
        lines.append(
            ("trainable", f"{facts['trainable_parameters']:,} ({facts['trainable_fraction']:.3%}; {how})")
        )
    return lines


def _pruned(found: dict[str, Any]) -> str:
    how = f"{found['method']}, {found['sparsity']}" if found["method"] else "nothing says how"
    return f"{how}; adapters are trained with its mask (mask.npz)"


def _base(base: str | dict[str, str]) -> str:
    return base if isinstance(base, str) else ", ".join(f"{key} {value}" for key, value in base.items())


def _attention(facts: dict[str, Any]) -> str:
    heads, groups, size = facts["heads"], facts["key_value_heads"], facts["queries_per_key_value_head"]
    if size == 1:
        return f"{heads} heads, each with its own keys and values (multi-head)"
    return f"{heads} heads share {groups} key-value heads, {size} each (grouped-query)"


def _multipliers(found: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in found.items())


def _stored(facts: dict[str, Any]) -> str:
    stored = facts["stored"]
    if stored is None:
        return f"no weights on this machine; config.json says {facts['dtype'] or 'nothing about their type'}"
    types = ", ".join(
        f"{name} ({count / stored['parameters']:.1%})" for name, count in stored["dtypes"].items()
    )
    return f"{stored['bytes'] / 1e9:,.2f} GB in {stored['files']} file{'s' * (stored['files'] != 1)}: {types}"


def _targets(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)
