"""`emma init`: a first run for one's own languages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.errors import UserError
from emma.commands.amount import Amount

if TYPE_CHECKING:
    from emma.tools.adapt.recipes import Wishes

__all__ = ["command"]

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


class Tokens(click.ParamType):
    """A number of tokens: `2000000`, `2M`, `1.5B`."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: it is none, or not above 0.
        """
        found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*)([KMBGT]?)", str(value).upper())
        number = float(found[1].replace("_", "").replace(",", "")) * _UNITS[found[2]] if found else 0.0
        if not 0 < number <= 1e15:
            self.fail(f"{value} is no number of tokens; write 2000000, 2M or 1.5B.", param, ctx)
        return number


class Pair(click.ParamType):
    """`KEY=VALUE`."""

    name = "pair"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Key and value.

        Raises:
            click.BadParameter: one of them is missing.
        """
        key, _, right = str(value).partition("=")
        if not key or not right:
            self.fail(f"{value} is not of the form KEY=VALUE.", param, ctx)
        return key, right


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--languages",
    multiple=True,
    metavar="CODES",
    help="Codes or names of the languages to adapt to, e.g. swh,yor,Zulu.",
)
@click.option(
    "--keep",
    multiple=True,
    default=("eng",),
    show_default="eng",
    metavar="CODES",
    help="Languages that the base knows and must not forget, where there is text of them; `none` for none.",
)
@click.option(
    "--text",
    multiple=True,
    metavar="PATH",
    help="File or folder of raw text and pairs; FILE=LANGUAGE where neither a column nor a name says it.",
)
@click.option(
    "--data",
    metavar="NAME",
    help="Data recipe (a name in recipes/data, or a file) whose corpus.sources are taken, instead of --text or before it.",
)
@click.option(
    "--license", "license_", metavar="SPDX", help="Licence of the text of --text that names none itself."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=Pair(),
    metavar="LABEL=CODE",
    help="What a label of the files stands for.",
)
@click.option(
    "--base", metavar="NAME", help="Base model: a name in recipes/models (`emma recipe list`), or a file."
)
@click.option(
    "--base-path",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of the base model. [default: where its recipe says]",
)
@click.option(
    "--cluster",
    default=None,
    metavar="NAME",
    help="A shipped cluster, a file (`emma slurm site init`), or `here`. [default: here]",
)
@click.option(
    "--slurm",
    "slurm",
    multiple=True,
    type=Pair(),
    metavar="KEY=VALUE",
    help="A setting of cluster.slurm, e.g. account=project_1.",
)
@click.option(
    "--epochs", type=Amount(above=0, at_most=9e4), help="Budget: epochs over the languages' own text."
)
@click.option("--tokens", type=Tokens(), metavar="TOKENS", help="Budget: tokens, e.g. 2B.")
@click.option(
    "--gpu-hours", type=Amount(above=0), help="Budget: GPU-hours, at the speed that `emma plan` expects."
)
@click.option(
    "--max-epochs",
    type=Amount(above=0, at_most=9e4),
    default=4.0,
    show_default=True,
    help="Most epochs over a language.",
)
@click.option(
    "--settle",
    "settling",
    is_flag=True,
    help="After `emma pack run`: write the recipes of FOLDER again with exact counts.",
)
@click.option(
    "--yes", is_flag=True, help="Ask nothing: what no option gives has its default, or is an error."
)
@click.option("--overwrite", is_flag=True, help="Replace recipes that are in FOLDER.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that read the text. [default: one per core]"
)
@click.option("--dry-run", is_flag=True, help="Measure and say what would be written; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    folder: Path,
    languages: tuple[str, ...],
    keep: tuple[str, ...],
    text: tuple[str, ...],
    data: str | None,
    license_: str | None,
    labels: tuple[tuple[str, str], ...],
    base: str | None,
    base_path: str | None,
    cluster: str | None,
    slurm: tuple[tuple[str, str], ...],
    epochs: float | None,
    tokens: float | None,
    gpu_hours: float | None,
    max_epochs: float,
    settling: bool,
    yes: bool,
    overwrite: bool,
    workers: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Begin a run for one's own languages: measure the text, and write recipes and commands to FOLDER.

    FOLDER gets run.yaml, data.yaml and cluster.yaml, small recipes over shipped ones with the reason of each value, and
    NEXT.md, the commands from here to a release. What no option says is asked for, on a terminal. Budget: one of --epochs,
    --tokens, --gpu-hours.

    \b
    Examples:
      emma init african --languages swh,yor,Zulu --text raw --base llama3.1_8b --cluster h100_8 --epochs 2
      emma init ours --data raw/data.yaml --languages hin,mar --base qwen3_4b --cluster ours.yaml --gpu-hours 500
      emma init african --settle
    """
    from emma.base.arrow import keep_pandas_out
    from emma.base.processes import available_cores
    from emma.tools.adapt.recipes import Wishes
    from emma.tools.adapt.start import begin, settle
    from emma.tools.adapt.written import write_files

    keep_pandas_out()
    changes: list[str] = []
    if settling:
        if languages or text or data or base or cluster or epochs or tokens or gpu_hours:
            raise UserError(
                "--settle takes what FOLDER was begun with. Fix: give no other wishes, or begin again without --settle"
            )
        begun, changes = settle(folder)
    else:
        ask = _Asking(not yes and not as_json and sys.stdin.isatty())
        languages = languages or (ask("Languages (codes or names)", "--languages"),)
        if not text and data is None:
            text = (ask("Folder or file of raw text", "--text"),)
        base = base or ask("Base model (a name in recipes/models)", "--base")
        if cluster is None:
            cluster = ask("Cluster (shipped, file, or `here`)", "--cluster", "here")
        if sum(budget is not None for budget in (epochs, tokens, gpu_hours)) > 1:
            raise UserError(
                "--epochs, --tokens and --gpu-hours are three ways to say the budget. Fix: give one of them"
            )
        if epochs is None and tokens is None and gpu_hours is None:
            answer = ask("Budget (2 epochs, 1.5B tokens, 500 hours)", "--epochs, --tokens or --gpu-hours")
            epochs, tokens, gpu_hours = _budget(answer)
        wishes = Wishes(
            languages=list(languages),
            keep=[] if keep == ("none",) else list(keep),
            base=base,
            base_path=base_path,
            cluster=cluster,
            text=list(text),
            data=data,
            license=license_,
            labels=dict(labels),
            slurm=dict(slurm),
            epochs=epochs,
            tokens=tokens,
            gpu_hours=gpu_hours,
            max_epochs=max_epochs,
        )
        _check_base(wishes)
        begun = begin(folder, wishes, workers=workers or available_cores())
    said = (
        [] if dry_run else write_files(begun.files, begun.state, folder, overwrite=overwrite, again=settling)
    )
    if as_json:
        import orjson

        values = {**begun.to_dict(), "changes": changes, "files": begun.files if dry_run else said}
        click.echo(orjson.dumps(values, option=orjson.OPT_INDENT_2).decode())
        return
    for line in [*begun.table, "", *begun.notes, *changes]:
        click.echo(line)
    recipe = begun.recipe
    click.echo(
        f"{recipe.schedule.steps:,} steps of {recipe.tokens_per_step:,} tokens: {recipe.total_tokens:,} tokens"
        + (f", {begun.plan.time.gpu_hours:,.0f} GPU-hours expected" if begun.plan.time else "")
    )
    for line in said or [f"{folder / name}: would be written" for name in begun.files]:
        click.echo(line)
    if not dry_run:
        click.echo(f"go on with {folder / 'NEXT.md'}")


class _Asking:
    """Asks on a terminal; elsewhere, what is missing is an error."""

    def __init__(self, possible: bool) -> None:
        self.possible = possible

    def __call__(self, question: str, option: str, default: str | None = None) -> str:
        if self.possible:
            return str(click.prompt(question, default=default, err=True))
        if default is not None:
            return default
        raise UserError(f"{option} is missing, and nobody can be asked. Fix: add it")


def _budget(answer: str) -> tuple[float | None, float | None, float | None]:
    """Epochs, tokens, or GPU-hours."""
    number, _, unit = answer.strip().partition(" ")
    unit = unit.strip().lower()
    value = Tokens().convert(number, None, None)
    if unit.startswith("epoch"):
        return value, None, None
    if "hour" in unit:
        return None, None, value
    if unit in ("", "token", "tokens"):
        return None, value, None
    raise UserError(f"budget `{answer}`: no unit. Fix: write 2 epochs, 1.5B tokens or 500 hours")


def _check_base(wishes: Wishes) -> None:
    """Refuses a base folder that holds another model than the recipe's."""
    from emma.checkpoints_conversion.config import check_same_shape, model_from_hf
    from emma.recipes.load import load_section

    model = load_section("model", wishes.base)
    folder = Path(wishes.base_path or model.tokenizer.path)
    if wishes.base_path is not None or (folder / "config.json").is_file():
        found = model_from_hf(folder, vocab_padding=model.vocab_padding)
        check_same_shape(found, model, str(folder), wishes.base)
