"""`emma help`."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(name="help")
@click.argument("words", nargs=-1, metavar="[STAGE] [COMMAND]")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a stage with all its commands, as one page.

    \b
    emma help              # the stages
    emma help mix          # emma mix --help, then the help of each of its commands
    emma help mix build    # the same as emma mix build --help
    """
    assert ctx.parent is not None  # it is a command of `emma`
    here, place = ctx.parent.command, ctx.parent
    for word in words:
        found = here.get_command(place, word) if isinstance(here, click.Group) else None
        if found is None:
            raise click.UsageError(f"no command {word!r}; `emma help` lists the stages")
        here, place = found, click.Context(found, info_name=word, parent=place)
    pages = [here.get_help(place)]
    if words and isinstance(here, click.Group):
        for name in here.list_commands(place):
            inner = here.get_command(place, name)
            if inner is not None and not inner.hidden:
                context = click.Context(inner, info_name=name, parent=place)
                pages += [f"── {context.command_path}", inner.get_help(context)]
    click.echo_via_pager("\n\n".join(pages) + "\n")
