"""The command line: one table of verbs, and what an error becomes. A verb's module is imported only when it
is needed."""

import errno
import gc
import io
import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from data_prep.errors import DataError
from finetune import environment, signals
from finetune.engines.launch.worker import end_with_launcher, leave_terminal, tell_launcher
from finetune.environment import is_worker
from finetune.errors import FinetuneError, PeerLost, RecipeError

# Verb -> its module in finetune/cli, which has a function of the same name, or, for a verb with verbs of its
# own, `app`.
VERBS: dict[str, str] = {
    "quickstart": "quickstart",
    "check": "check",
    "convert": "convert",
    "data": "data",
    "train": "train",
    "train-many": "train_many",
    "sweep": "sweep",
    "plan": "plan",
    "merge": "merge",
    "verify": "verify",
    "unmerge": "unmerge",
    "combine": "combine",
    "extract": "extract",
    "prune": "prune",
    "export": "export",
    "push": "push",
    "generate": "generate",
    "chat": "chat",
    "serve": "serve",
    "sample": "sample",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "runs": "runs",
    "report": "report",
    "board": "board",
    "inspect": "inspect",
    "doctor": "doctor",
    "selftest": "selftest",
    "schema": "schema",
}
TOGETHER_VERBS = ("train-many", "sweep")
"""Those that may train several runs in one process."""
TRAINING_VERBS = ("train", "train-many", "sweep", "quickstart")
BROKEN_PIPE = 141  # as a shell reports SIGPIPE: the reader of our output has gone
USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for words that it doesn't know; it has no public name."""
LONGEST_LINE = 1_200
"""Characters of a line of an error."""


class Verbs(TyperGroup):
    """The verbs of the table, each imported when it is run, or when the help lists it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; one that a scheduler's signal stopped has an exit code of its own."""
        try:
            return super().invoke(ctx)
        except signals.Stopped:
            raise typer.Exit(signals.STOPPED) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a verb, or None for a name that is none and near none."""
        if cmd_name not in VERBS:
            close = get_close_matches(cmd_name, VERBS, n=1)
            return ctx.fail(f"No such command {cmd_name!r}. Did you mean {close[0]!r}?") if close else None
        module = import_module(f"finetune.cli.{VERBS[cmd_name]}")
        verb = getattr(module, VERBS[cmd_name], None) or module.app
        if not isinstance(verb, typer.Typer):
            single = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
            single.command(cmd_name)(verb)
            verb = single
        command = typer.main.get_command(verb)
        command.name = cmd_name
        return command


# rich_markup_mode: help through rich costs 0.1 s.
app = typer.Typer(
    cls=Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from finetune import __version__
        from finetune.cli.common import out

        out(f"finetune {__version__}")
        raise typer.Exit


@app.callback()
def finetune(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Fine-tune LLaMA-family models with LoRA: strict recipes, audited data, verified merges, reproducible
    runs."""


def main() -> None:
    """Run the command line and exit: 0 done, 2 wrong input, 3 a check failed, 75 stopped by a scheduler's
    signal, 130 interrupted, 1 a bug of ours."""
    company, call = is_worker() or environment.has_company(), run
    if company:
        end_with_launcher()
        leave_terminal()
    if sys.argv[1:2] and sys.argv[1] in TRAINING_VERBS and not {"--help", "-h"} & set(sys.argv):
        from finetune.engines.launch.allocator import one_arena, restart_with_jemalloc, set_up_gpu

        set_up_gpu()
        signals.hold()  # over the restart: a signal in between would kill
        restart_with_jemalloc()
        if sys.argv[1] in TOGETHER_VERBS:
            one_arena()  # before libraries start threads
        call = _run_listening
    try:
        code = call()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered has no reader either; without this the interpreter's last flush would
        # complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    if company:
        # One of several processes: threads of torch's communication can abort it while the interpreter ends,
        # after its work is done and written, and its exit code would be lost.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # The interpreter's last collections would go through all of torch once more: a third of a second for
    # nothing.
    gc.freeze()
    sys.exit(code)


def _run_listening() -> int:
    """Run a verb that trains, with signals heard from its first moment to the exit."""
    try:
        with signals.listening() as requests:
            requests.exits = True
            return run()
    except KeyboardInterrupt:  # one that was held, or comes between verb and exit
        return signals.exit_code()


def run() -> int:
    """Run the command line of sys.argv; the exit code. Raises BrokenPipeError when nobody reads the output
    any more."""
    from finetune.cli.common import messages_shown

    with messages_shown():
        return _run()


def _run() -> int:
    from finetune.cli.common import never_fail_to_print, out
    from finetune.cli.quiet import quiet_libraries

    quiet_libraries()
    never_fail_to_print()
    options, before = sys.argv[1:], signals.interrupts()
    as_json = "--json" in (options[: options.index("--")] if "--" in options else options)
    try:
        verb = options[0] if options[:1] and options[0] in VERBS else None
        if verb is not None:
            refuse_absent_folder()
        if verb not in (None, "train", "train-many"):
            environment.settle_alone(verb)
        code = app(prog_name="finetune", standalone_mode=False)
    except USAGE_ERROR as error:  # which repeats what was typed
        shown = io.StringIO()
        error.show(shown)
        out(shown.getvalue().rstrip("\n"), stream=sys.stderr)
        return int(error.exit_code)
    except typer.Abort:
        return 1
    except SystemExit as finished:
        if isinstance(finished.__context__, BrokenPipeError):
            raise BrokenPipeError from None
        return finished.code if isinstance(finished.code, int) else 0
    except RecipeError as error:
        count = len(error.problems)
        problems = [{"place": p.place, "path": p.path, "message": p.message} for p in error.problems]
        _tell(f"{count} problem{'s' if count != 1 else ''} in the recipe", problems, as_json=as_json)
        return error.exit_code
    except (FinetuneError, DataError) as error:
        _tell(str(error), [], as_json=as_json, lost=isinstance(error, PeerLost))
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            full = error.filename2 or error.filename  # of a copy the second is what was written
            where = (
                f": {full}; make room there"
                if full
                else ("; make room where the output, the cache and temporary files lie")
            )
            _tell(f"the disk is full{where}", [], as_json=as_json)
            return FinetuneError.exit_code
        if error.filename is None:  # not about a file that the user named
            return _bug()
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        _tell(f"{names}: {error.strerror or error}", [], as_json=as_json)
        return FinetuneError.exit_code
    except KeyboardInterrupt:
        return signals.INTERRUPTED
    except Exception:  # noqa: BLE001 - the last resort of the process: shown in full, exit 1
        return signals.exit_code() if signals.interrupts() > before else _bug()
    return code if isinstance(code, int) else 0


def refuse_absent_folder() -> None:
    """Raises FinetuneError where the working folder was deleted: every relative path starts there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FinetuneError("the working folder was deleted: change to one that is there.") from None


def _tell(message: str, problems: list[dict[str, str]], *, as_json: bool, lost: bool = False) -> None:
    """Say what went wrong: to the person, or to the launcher that started this process."""
    from finetune.cli.common import print_failure, printable

    message = _cut(printable(message))
    problems = [{key: _cut(printable(text)) for key, text in problem.items()} for problem in problems]
    tell_launcher("\n".join([message, *("  ".join(problem.values()) for problem in problems)]), lost=lost)
    if not is_worker():
        print_failure(message, problems, as_json=as_json)


def _cut(text: str) -> str:
    """The text, of long lines their beginning and their end: a value of the user's may be as long as a
    book."""
    half = LONGEST_LINE // 2
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"
        for line in text.split("\n")
    )


def _bug() -> int:
    """Show the exception that is being handled in full; the exit code."""
    from finetune.cli.common import out, print_error

    tell_launcher(traceback.format_exc().rstrip())
    if is_worker():
        return 1  # the launcher says it
    out(traceback.format_exc().rstrip(), stream=sys.stderr)
    print_error("this is a bug of finetune, not of your input; please report it with the lines above")
    return 1
