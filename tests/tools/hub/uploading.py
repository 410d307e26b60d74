"""A running server in place of the Hub, and uploads to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.commands.release import group
from emma.tools.hub.checksums import CHECKSUMS_NAME, listed_files
from tests.tools.hub.hub_server import TOKEN, Hub, serve


@pytest.fixture
def hub() -> Hub:
    return Hub()


def point(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Lets this process's client talk to a server, as HF_ENDPOINT does for a new process."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def address(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A running server that this process's client talks to."""
    server, url = serve(hub)
    point(monkeypatch, url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the server speaks git LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("EMMA_PROGRESS", "0")
    yield url
    server.shutdown()
    server.server_close()


def upload(folder: Path, *options: str, repository: str = "team/model") -> tuple[int, str]:
    """Exit code and everything that was printed."""
    runner = CliRunner()
    result = runner.invoke(group, ["upload", str(folder), repository, *options])
    text = result.output
    if isinstance(result.exception, UserError):
        return result.exception.exit_code, text + str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert TOKEN not in text
    return result.exit_code, text


def held(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    files = dict(hub.repositories["team/model"].branches[branch])
    files.pop(".gitattributes", None)
    return files


def local(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*listed_files(folder), CHECKSUMS_NAME)}
