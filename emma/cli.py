"""The command line `emma`: a table of nouns and of the modules that implement them, imported only when called."""

from __future__ import annotations

import importlib
import os
import sys

import click

from emma.base.command_group import SuggestingGroup
from emma.base.extras import explain_missing
from emma.base.system_errors import DEBUG, report

__all__ = ["main"]

# noun → (module:attribute, help). The help is here so that `emma --help` need not import any stage.
COMMANDS = {
    "init": ("emma.commands.init:command", "Begin a run for one's own languages: recipes and commands."),
    "recipe": ("emma.commands.recipe:group", "List recipes and show their resolved settings."),
    "corpus": ("emma.commands.corpus:group", "Raw text → clean, deduplicated, split text, with statistics."),
    "tokenizer": (
        "emma.commands.tokenizer:group",
        "What a tokenizer costs each language; new tokens for it.",
    ),
    "pack": ("emma.commands.pack:group", "Clean text → token store (.bin files and an index of documents)."),
    "mix": ("emma.commands.mix:group", "Token store and recipe → training and validation datasets."),
    "plan": ("emma.commands.plan:command", "Memory, steps, time and GPU-hours of a run; needs no GPU."),
    "train": ("emma.commands.train:command", "Train a run on this machine."),
    "slurm": ("emma.commands.slurm:group", "Submit runs to Slurm as chains of jobs; show their state."),
    "sweep": ("emma.commands.sweep:command", "Try a run with several values of some keys, by jobs or here."),
    "convert": ("emma.commands.convert:group", "Hugging Face ⇄ Megatron checkpoints, with proof of parity."),
    "evaluate": ("emma.commands.evaluate:group", "Evaluate a model, language by language."),
    "report": ("emma.commands.report:group", "Figures and tables of one or more runs on an HTML page."),
    "release": ("emma.commands.release:group", "Build, verify and upload release folders."),
    "help": ("emma.commands.help:command", "Show the help of a stage with all its commands."),
    "doctor": ("emma.commands.doctor:command", "Show what this machine has and which patches apply."),
}

# The extra to name when a command misses a package that several extras bring.
EXTRAS = {"train": "train", "plan": "train", "convert": "convert", "release": "convert", "evaluate": "eval"}


class LazyGroup(SuggestingGroup):
    """Lists commands from the table and imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _show_version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    from importlib.metadata import version
    from pathlib import Path

    from emma.tools.runs.environment import source_commit

    commit = source_commit(Path(__file__).parent.resolve())
    click.echo(f"emma {version('emma-recipes')}{f' (commit {commit})' if commit else ''}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version, and the commit of a checkout.",
)
@click.option("--debug", is_flag=True, help=f"Show where an error comes from (also: {DEBUG}=1).")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Continual pre-training of Llama models on 500+ languages with Megatron, one command per stage.

    \b
    corpus → pack → mix → train → convert → evaluate → report → release

    RUN is always the name of a shipped run (see `emma recipe list`), the path of a YAML file, or a run folder.
    Arguments of the form `section.key=value` after it override the recipe.

    \b
    Exit codes: 0 done; 1 a check found faults; 2 a mistake or a fault to mend; 75 a fault of the machine that
    may have passed by the next call; 130 interrupted.
    """
    if debug:
        os.environ[DEBUG] = "1"
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        ctx.color = False


def main() -> None:
    """Entry point: reports a user's mistake in one message, without a traceback, and sets the exit code."""
    if sys.version_info < (3, 12):  # noqa: UP036  a checkout's; an older one stops at a line that it cannot parse
        print(
            f"error: emma needs Python 3.12 or 3.13, but {sys.executable} is {sys.version.split()[0]}",
            file=sys.stderr,
        )
        sys.exit(2)
    # pydantic would look for its plugins in all installed packages: 25 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    noun = next((word for word in sys.argv[1:] if word in COMMANDS), "")
    try:
        with explain_missing(EXTRAS.get(noun)):
            code = cli(standalone_mode=False)
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.exit(report(KeyboardInterrupt()))
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and "." in error.option_name:
            hint = f" A key of the recipe has no dashes: {error.option_name.lstrip('-')}=VALUE."
            error = click.UsageError(error.format_message() + hint, ctx=error.ctx)
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if (told := report(error)) is None:
            raise
        sys.exit(told)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
