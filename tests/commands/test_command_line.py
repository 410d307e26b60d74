"""What holds for every command: version, help, colours, and a hand for typing errors."""

from __future__ import annotations

import re

import click
import pytest

from emma.cli import COMMANDS, cli
from tests.command_line import emma


def test_the_version_names_the_commit() -> None:
    answer = emma("--version")
    assert answer.code == 0 and re.fullmatch(r"emma \S+( \(commit [0-9a-f]{40}(-dirty)?\))?\n", answer.out)


def test_a_typing_error_gets_a_hand() -> None:
    assert "Did you mean `emma train`?" in emma("trian", "demo").err
    assert "Choose one of init, recipe, corpus, " in emma("xyzzy").err


def test_help_of_a_stage_holds_all_its_commands() -> None:
    page = emma("help", "mix")
    assert page.code == 0
    for name in ("plan", "build", "verify", "peek"):
        assert f"emma mix {name}" in page.out
    assert emma("help").out.count("\n") >= len(COMMANDS)
    single = emma("help", "mix", "build")
    assert "--replace" in single.out and "emma mix peek" not in single.out
    wrong = emma("help", "mix", "bulid")
    assert wrong.code == 2 and "no command 'bulid'" in wrong.err


def test_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """click strips colours where the context says so, on a terminal too."""
    seen: list[bool | None] = []

    @click.command()
    @click.pass_context
    def probe(ctx: click.Context) -> None:
        seen.append(ctx.color)

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: probe)
    for value in ("1", ""):
        monkeypatch.setenv("NO_COLOR", value)
        cli.main(["recipe"], standalone_mode=False)
    assert seen == [False, None]
