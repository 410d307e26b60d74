"""The command line `emma`: a table of nouns and the modules that implement them, imported when they are called."""

from __future__ import annotations

import importlib
import sys

import click

from emma.base.errors import UserError

__all__ = ["main"]

# noun → (module:attribute, help). The help stands here so that `emma --help` imports no stage.
COMMANDS = {
    "recipe": ("emma.commands.recipe:group", "Show and list recipes: the resolved settings of a run."),
    "corpus": (
        "emma.commands.corpus:group",
        "Raw text → clean, deduplicated, split text and its statistics.",
    ),
    "pack": ("emma.commands.pack:group", "Clean text → token store (.bin and one row a document)."),
    "mix": ("emma.commands.mix:group", "Token store and recipe → training and validation datasets."),
    "plan": ("emma.commands.plan:command", "Memory, steps, time and GPU-hours of a run, without a GPU."),
    "train": ("emma.commands.train:command", "Train a run on this machine."),
    "slurm": ("emma.commands.slurm:group", "Submit runs, chains and sweeps to Slurm; show their state."),
    "convert": (
        "emma.commands.convert:group",
        "Hugging Face ⇄ Megatron checkpoints, and proof of parity.",
    ),
    "evaluate": ("emma.commands.evaluate:group", "Evaluate a model per language."),
    "report": ("emma.commands.report:group", "Plots, tables and one HTML page of runs."),
    "release": (
        "emma.commands.release:group",
        "Release folders, cards, checksums, upload.",
    ),
    "doctor": ("emma.commands.doctor:command", "What this machine has, and which patches are on."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports a command's module only when it is called."""

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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="emma-recipes", prog_name="emma")
def cli() -> None:
    """Continual pre-training of Llama models on 500+ languages with Megatron, stage by stage.

    \b
    corpus → pack → mix → train → convert → evaluate → report → release

    RUN, wherever it is asked for, is the name of a shipped run (`emma recipe list`), the path of a YAML file, or a
    run folder. `section.key=value` after it overrides the recipe.
    """


def main() -> None:
    """Entry point: prints a user's mistakes as one message and turns them into exit codes."""
    try:
        code = cli(standalone_mode=False)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        click.echo("aborted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
