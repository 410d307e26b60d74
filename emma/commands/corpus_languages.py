"""`emma corpus languages`: what labels of languages stand for."""

from __future__ import annotations

import click

__all__ = ["languages"]


@click.command()
@click.argument("labels", nargs=-1, required=True)
@click.option(
    "--spelling",
    type=click.Choice(["iso", "mala"]),
    default="iso",
    show_default=True,
    help="Spelling of the output codes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def languages(labels: tuple[str, ...], spelling: str, as_json: bool) -> None:
    """Say what language labels stand for: BCP 47, ISO 639, old codes, locales, OPUS and FLORES spellings.

    \b
    Examples:
      emma corpus languages zh zho_Hans sr_latin pt-br iw
    """
    from emma.tools.languages.labels import LanguageResolver, language_name

    resolver = LanguageResolver(spelling="mala" if spelling == "mala" else "iso")
    rows = []
    for label in labels:
        found = resolver.resolve(label)
        scripts = [found.script] if found.script else list(resolver.scripts(found.language))
        rows.append(
            {
                "label": label,
                "language": found.language,
                "name": language_name(found.language),
                "codes": [resolver.spell(found.language, script) for script in scripts],
                "script_from": "label" if found.script else "text",
                "decision": found.decision,
            }
        )
    if as_json:
        import orjson

        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    for row in rows:
        codes = (
            row["codes"][0] if row["script_from"] == "label" else "|".join(row["codes"]) or row["language"]
        )
        click.echo(f"{row['label']:16} {codes:28} {row['name']}  ({row['decision']})")
