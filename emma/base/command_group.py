"""A group of commands that names its commands to who asks for another one."""

from __future__ import annotations

import click

__all__ = ["SuggestingGroup"]


class SuggestingGroup(click.Group):
    """`click.Group`, whose answer to an unknown command is the nearest one, or all."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from difflib import get_close_matches

            known = self.list_commands(ctx)
            near = get_close_matches(args[0], known, 1)
            fix = (
                f"Did you mean `{ctx.command_path} {near[0]}`?"
                if near
                else f"Choose one of {', '.join(known)}."
            )
            raise click.UsageError(f"No such command '{args[0]}'. {fix}", ctx) from None
