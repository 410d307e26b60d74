"""`emma tokenizer`: what a tokenizer costs each language, and new tokens where they pay."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.command_group import SuggestingGroup
from emma.base.errors import CheckFailedError, UserError

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe

__all__ = ["group"]

_PATH = click.Path(path_type=Path)
_DOCUMENTS, _CHARACTERS = 16, 20_000


@click.group(cls=SuggestingGroup)
def group() -> None:
    """What a tokenizer costs each language, and new tokens for the languages that it serves worst.

    \b
    emma tokenizer report RUN                              tokens of each language for the same sentences
    emma tokenizer extend RUN OUT                          new tokens from the run's training documents
    emma tokenizer verify BASE OUT                         old ids keep their meaning, in every engine
    emma convert extend-vocabulary MODEL OUT --tokenizer…  the model's embeddings for them
    """


run_argument = click.argument("run")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes; any number gives the same result. [default: one per core]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _recipe(run: str, overrides: tuple[str, ...]) -> Recipe:
    from emma.base.arrow import keep_pandas_out
    from emma.recipes.load import load_recipe

    keep_pandas_out()
    return load_recipe(run, overrides)


def _echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@group.command()
@run_argument
@overrides_argument
@click.option(
    "--against", type=_PATH, multiple=True, help="Folder of another tokenizer, to compare; repeatable."
)
@click.option(
    "--split",
    type=click.Choice(["validation", "all"]),
    default="validation",
    show_default=True,
    help="Documents and pairs to count; `all` flatters a tokenizer that was made of the training ones.",
)
@click.option("--set", "pair_set", help="Source of the pairs. [default: the one with most languages]")
@json_option
def report(
    run: str,
    overrides: tuple[str, ...],
    against: tuple[Path, ...],
    split: str,
    pair_set: str | None,
    as_json: bool,
) -> None:
    """What RUN's tokenizer costs each language of its corpus: tokens for the same sentences as English, and why.

    Reads validation text of the corpus, and its sentence pairs with English (eng_Latn). Writes report.json,
    report.parquet and a page, index.html, to statistics/tokenizer-… of the corpus; the run's report and the model card
    quote it.

    \b
    Examples:
      emma tokenizer report demo
      emma tokenizer report emma_llama3_8b_bi --against base/Llama-2-7b --against base/gemma-2-9b
    """
    from emma.tools.tokenizer.report import make_report, summary_lines, write_report

    recipe = _recipe(run, overrides)
    found = make_report(recipe, against, split=split, pair_set=pair_set)
    folder = write_report(found, recipe)
    if as_json:
        _echo_json(found.to_dict())
        return
    for line in summary_lines(found):
        click.echo(line)
    click.echo(f"{folder / 'index.html'}")


@group.command()
@run_argument
@click.argument("out", type=_PATH)
@overrides_argument
@click.option(
    "--tokens", type=click.IntRange(min=1), help="New ids; takes precedence over tokenizer_extension.tokens."
)
@workers_option
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--dry-run", is_flag=True, help="Show the base, the settings and the text; write nothing.")
@json_option
def extend(
    run: str,
    out: Path,
    overrides: tuple[str, ...],
    tokens: int | None,
    workers: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Extend RUN's tokenizer by new tokens of its corpus's training documents, and write it to OUT.

    Old ids keep their meaning; a new token is two tokens joined. OUT gets tokenizer.json, the base's settings,
    extension.parquet (each new token with its counts and its pieces in the base), report.html and report.parquet (what base
    and result cost each language, on validation text) and manifest.json. The result is checked on validation text before
    OUT appears. A run that uses it sets model.tokenizer.path=OUT and model.vocab_size.

    \b
    Examples:
      emma tokenizer extend demo demo/tokenizer-8k --tokens 4096
      emma tokenizer extend emma_llama3_8b_bi base/llama3-16k tokenizer_extension.temperature=2
    """
    from emma.base.processes import available_cores
    from emma.tools.pack.tokenizer_file import TokenizerFile
    from emma.tools.tokenizer.bpe import Bpe
    from emma.tools.tokenizer.extend import extend as make
    from emma.tools.tokenizer.extend import extension_of
    from emma.tools.tokenizer.promises import held_out, verify
    from emma.tools.tokenizer.report import make_report, summary_lines, write_tables
    from emma.tools.tokenizer.words import by_language

    recipe = _recipe(run, overrides)
    settings, corpus = extension_of(recipe, tokens), Path(recipe.paths.corpus)
    file = TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size)
    file.check()
    if dry_run:
        parts = by_language(corpus)
        base = {"path": str(file.path), "sha256": file.sha256, "tokens": Bpe.read(file).size}
        _echo_json(
            {"base": base, "settings": settings.model_dump(), "corpus": str(corpus), "languages": len(parts)}
        )
        return

    def check(folder: Path) -> dict[str, Any]:
        found = verify(file.path.parent, folder, held_out(corpus, _DOCUMENTS, _CHARACTERS))
        if found.faults:
            raise CheckFailedError(
                "\n".join([f"{out} was not written, because it would be wrong:", *found.faults])
            )
        # Not of the folder that is being written, which will have another name.
        costs = replace(
            make_report(recipe, [folder], characters=_CHARACTERS), names=[str(file.path.parent), str(out)]
        )
        write_tables(costs, folder, "report.html")
        return {"counts": found.counts, "engines": found.engines, "costs": summary_lines(costs)}

    manifest = make(
        file,
        corpus,
        out,
        settings,
        recipe_sha256=recipe.sha256,
        workers=workers or available_cores(),
        overwrite=overwrite,
        check=check,
    )
    if as_json:
        _echo_json({"destination": str(out), **manifest.extra})
        return
    extra = manifest.extra
    click.echo(
        f"{out}: {extra['tokens']:,} new tokens from {extra['bytes'] / 1e6:,.1f} MB in {len(extra['languages'])} languages; "
        f"ids {extra['base']['tokens']:,} to {extra['vocab_size'] - 1:,}"
    )
    if extra["tokens"] < settings.tokens:
        click.echo(f"{out}: the text gives no more than that; {settings.tokens:,} were asked for")
    if few := extra["without_pairs"]:
        click.echo(
            f"{out}: parity chose no token for {len(few)} of {len(extra['languages'])} languages, English and those without "
            f"training pairs with it: {', '.join(few[:8])}{', …' if len(few) > 8 else ''}"
        )
    for line in extra["verified"]["costs"]:
        click.echo(line)
    for name, state in extra["verified"]["engines"].items():
        if state != "equal":
            click.echo(f"{name}: {state}; another engine will encode")
    if extra["left_out"]:
        click.echo(f"not copied, since they describe the base's vocabulary: {', '.join(extra['left_out'])}")
    click.echo(f"a run that uses it sets model.tokenizer.path={out} model.vocab_size={extra['vocab_size']}")


@group.command()
@click.argument("base", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--corpus", type=_PATH, help="The corpus it was made of. [default: where the manifest says]")
@click.option(
    "--repeat/--no-repeat",
    default=True,
    show_default=True,
    help="Make the extension once more from the training documents, and compare.",
)
@workers_option
@json_option
def verify(
    base: Path, out: Path, corpus: Path | None, repeat: bool, workers: int | None, as_json: bool
) -> None:
    """Check that the tokenizer in OUT extends the one in BASE as `emma tokenizer extend` promises.

    \b
    - every old id stands for the same bytes and every control token has its old id, in tokenizers and transformers
    - replacing each new token by its pieces gives the base's ids (not with pattern: marks)
    - all engines agree on validation text of every language; decoding and saving change nothing
    - every new token is reached by its own bytes; no text spells a control token
    - the training documents, and nothing else, give the same tokens again

    Exits with 1 on any fault.
    """
    from emma.base.arrow import keep_pandas_out
    from emma.base.processes import available_cores
    from emma.tools.tokenizer.extend import read_extension
    from emma.tools.tokenizer.promises import held_out
    from emma.tools.tokenizer.promises import verify as check

    keep_pandas_out()
    extended = read_extension(out)
    corpus = corpus or Path(extended.manifest.extra["corpus"]["path"])
    if not (corpus / "split").is_dir():
        raise UserError(
            f"{corpus}: no corpus here, whose validation text is read; name its folder with --corpus"
        )
    found = check(
        base,
        out,
        held_out(corpus, _DOCUMENTS, _CHARACTERS),
        corpus=corpus if repeat else None,
        workers=workers or available_cores(),
    )
    if as_json:
        _echo_json(asdict(found))
    else:
        counts = found.counts
        click.echo(
            f"{out}: {counts['new_tokens']:,} new tokens ({counts['new_tokens_used']:,} of them used), {counts['documents']:,} "
            f"texts in {counts['languages']} languages: {len(found.faults) or 'no'} fault{'s'[: len(found.faults) != 1]}"
        )
        for name, state in found.engines.items():
            click.echo(f"{name}: {state}")
        for line in found.unread:
            click.echo(f"not checked: {line}")
    if found.faults:
        raise CheckFailedError("\n".join([f"{out}: the extension is wrong:", *found.faults]))
