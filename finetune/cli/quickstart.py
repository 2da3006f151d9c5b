"""finetune quickstart: the whole way on a real model, and one table of what it brought."""

from finetune import signals
from finetune.cli.common import JsonOption, OverridesArgument, out, print_json, tell_messages


def quickstart(overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Train, merge and score a real model.

    Fine-tunes a 135M LLaMA on a task that it can't do, merges the adapter, and compares answers before and
    after.
    """
    from finetune.recipe.load import load_recipe

    tell_messages(as_json)
    with signals.listening():
        loaded = load_recipe("quickstart", overrides or [])

        from finetune.quickstart import table, walk

        result = walk(loaded.recipe)
    if as_json:
        print_json(result)
    else:
        out("")
        for line in table(result):
            out(line)
