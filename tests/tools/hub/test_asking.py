"""Whatever keeps the Hub from answering ends in one message, for all that ask it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.remote import remote_identity
from emma.tools.evaluation.benchmarks import stores
from emma.tools.evaluation.benchmarks.definitions import Source
from emma.tools.evaluation.benchmarks.harness_data import mirrored
from emma.tools.hub import asking
from emma.tools.hub.asking import UnreachableError, answered
from emma.tools.hub.download import download, list_dataset
from emma.tools.hub.upload import Upload, server_faults, upload_release
from tests.tools.hub.hub_server import Hub, Repository
from tests.tools.hub.uploading import point

SOURCE = Source(name="mono", repository="team/mono", splits={}, columns=())


@pytest.fixture
def hub() -> Hub:
    hub = Hub(repositories={"team/mono": Repository(private=False, kind="dataset", commits=7)})
    hub.repositories["team/mono"].branches["main"]["train.jsonl"] = b'{"text": "a"}\n'
    return hub


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No waiting between attempts, by the client neither, and no cache."""
    monkeypatch.setattr(asking, "_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    stores._listed.cache_clear()
    yield
    stores._listed.cache_clear()


def _folder(tmp_path: Path) -> Upload:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return Upload(folder, "dataset", "team/mono", "main", True, ("README.md",), 23)


ASKERS: dict[str, Callable[[Path], object]] = {
    "list": lambda folder: list_dataset("team/mono", None),
    "names": lambda folder: stores.HubStore().names(SOURCE),
    "file": lambda folder: stores.HubStore().path(SOURCE, "train.jsonl"),
    "upload": lambda folder: upload_release(_folder(folder), attempts=2),
    "compare": lambda folder: server_faults(_folder(folder)),
}
TROUBLES: dict[int | str, str] = {
    401: "the Hub answered 401: it does not (show|recognise)",
    403: "the Hub answered 403: your token (may not read|lacks write)",
    404: "the Hub answered 404: (there is no such|the owner or)",
    418: "the Hub answered 418: (so it is|Client error)",
    429: "interrupted . times, most recently by: .*429.*same command continues",
    503: "interrupted . times, most recently by: .*503.*same command continues",
    "page": "what answered is not the Hub .*login page|interrupted . times",
    "silence": "interrupted . times, most recently by: .*timed out",
    "hang up": "interrupted . times, most recently by: .*disconnected",
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("asker", ASKERS)
def test_one_message(
    asker: str, trouble: int | str, hub: Hub, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.trouble = trouble
    if trouble == "silence":
        monkeypatch.setitem(asking._LIMITS, "read", 0.2)
    with pytest.raises(UserError, match=f"(?s)team/mono: .*({TROUBLES[trouble]})") as caught:
        ASKERS[asker](tmp_path)
    hub.awake.set()
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UnreachableError)


@pytest.mark.parametrize("asker", ASKERS)
@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid", "huggingface.co", "http://[::"]
)
def test_nothing_answers(asker: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point(monkeypatch, endpoint)
    with pytest.raises(UnreachableError, match=r"team/mono: .*HF_ENDPOINT") as caught:
        ASKERS[asker](tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_breaks_off_each_time(hub: Hub, address: str, tmp_path: Path) -> None:
    listing = list_dataset("team/mono", None)
    files = [(file.path, file) for file in listing.files if file.path == "train.jsonl"]
    hub.trouble = "hang up"
    with pytest.raises(UserError, match="team/mono: interrupted 5 times"):
        download(tmp_path / "data", tmp_path / "marks", listing, files, 1, lambda size: None)
    assert not (tmp_path / "data").exists()
    hub.trouble = 0
    download(tmp_path / "data", tmp_path / "marks", listing, files, 1, lambda size: None)
    assert (tmp_path / "data" / "train.jsonl").read_bytes() == b'{"text": "a"}\n'


def test_offline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for asker in ASKERS:
        (tmp_path / asker).mkdir()
        with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE"):
            ASKERS[asker](tmp_path / asker)


def test_what_is_not_the_hubs_is_left_as_it_is() -> None:
    asked: list[float] = []

    def full() -> None:
        asked.append(time.monotonic())
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        answered("team/mono", full)
    assert len(asked) == 1
    with pytest.raises(ZeroDivisionError):
        answered("team/mono", lambda: 1 // 0)


def test_stores_and_lm_evals_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask the Hub by other libraries."""
    point(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"hf://datasets/team/mono/a: the store cannot be read \(.*refused"):
        remote_identity("hf://datasets/team/mono/a")
    with pytest.raises(UserError, match="the hub gives no data"), mirrored(stores.HubStore()):
        raise ConnectionError("Couldn't reach 'team/mono' on the Hub")
