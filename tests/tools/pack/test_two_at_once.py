"""Two processes that pack one store at the same time, each process 1 of its own pid namespace on one host."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from emma.tools.pack import inputs
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.run import pack_store
from tests.folders import content
from tests.pid_namespaces import Contained, contained, needs_pid_namespaces
from tests.tiny_text import documents
from tests.tools.pack.conftest import MakeSettings

UNIT = 50_000

PACK = f"""
import os, sys
from pathlib import Path
from emma.recipes.schema.data import Pack
from emma.recipes.schema.model import Tokenizer
from tests.tiny_text import BEGIN, END
from emma.tools.pack import inputs
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.run import pack_store
from emma.tools.pack.tokenizer_file import TokenizerFile

if __name__ == "__main__":
    folder, store, tokenizer, share, workers = sys.argv[1:]
    assert os.getpid() == 1
    inputs._SMALLEST_UNIT = {UNIT}
    pack = Pack.model_validate({{"components": {{"web": {{"inputs": [folder]}}}}, "engine": "tokenizers"}})
    file = TokenizerFile(Tokenizer(path=tokenizer, begin_of_text=BEGIN, end_of_text=END), 512)
    settings = PackSettings(pack, file, Path("corpus"), Path(store), "0" * 64)
    if share == "finish":
        report = pack_store(settings, finish_only=True, workers=1)
    else:
        shard = None if share == "whole" else (int(share), 2)
        report = pack_store(settings, shard=shard, workers=int(workers))
    print(report["web"]["status"])
"""


@pytest.fixture
def settings(tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> PackSettings:
    """Hashes of a store that one process packed from about a dozen units."""
    needs_pid_namespaces()
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", UNIT)
    path = tmp_path / "raw" / "eng_Latn" / "train.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"id": str(number), "text": text} for number, text in enumerate(documents("eng_Latn", 3000))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = make_settings([path], "alone")
    pack_store(settings, workers=1)
    return settings


class Packing:
    """Starts processes that pack the store `shared`."""

    def __init__(self, tmp_path: Path, settings: PackSettings, stack: ExitStack) -> None:
        self.folder, self.settings, self.stack = tmp_path, settings, stack
        self.store = tmp_path / "shared"
        self.script = tmp_path / "pack.py"
        self.script.write_text(PACK)
        self.started = 0

    def start(self, share: str, workers: int = 1) -> Contained:
        self.started += 1
        raw, tokenizer = self.folder / "raw", self.settings.tokenizer.settings.path
        command = [
            sys.executable,
            str(self.script),
            str(raw),
            str(self.store),
            tokenizer,
            share,
            str(workers),
        ]
        return self.stack.enter_context(contained(self.folder / f"log-{self.started}", command))

    def packs_a_unit(self) -> bool:
        return any((self.store / "web" / ".pack").glob(".unit-*.partial/shard-*.bin"))

    def check(self) -> None:
        assert content(self.store / "web") == content(self.settings.store / "web")
        assert [path.name for path in self.store.iterdir()] == ["web"], "no lock stays"


def test_two_shards_leave_each_other_alone(tmp_path: Path, settings: PackSettings) -> None:
    with ExitStack() as stack:
        packing = Packing(tmp_path, settings, stack)
        first = packing.start("0")
        first.stop_when(packing.packs_a_unit)
        second = packing.start("1")
        second.succeeds()
        assert packing.packs_a_unit(), "what the stopped process is writing is still there"
        first.resume()
        first.succeeds()
        ends = [packing.start("finish"), packing.start("finish")]
        for each in ends:
            each.succeeds()
        assert {each.log.read_text().splitlines()[-1] for each in ends} <= {"packed", "was packed before"}
        packing.check()


def test_two_whole_runs_share_the_work_and_wait_for_each_other(
    tmp_path: Path, settings: PackSettings
) -> None:
    with ExitStack() as stack:
        packing = Packing(tmp_path, settings, stack)
        first = packing.start("whole")
        first.stop_when(packing.packs_a_unit)
        second = packing.start("whole")
        second.wait_for("web: process 1 ")
        assert second.process.poll() is None
        first.resume()
        first.succeeds()
        second.succeeds()
        packing.check()


def test_two_runs_with_several_processes_each_start_together(tmp_path: Path, settings: PackSettings) -> None:
    with ExitStack() as stack:
        packing = Packing(tmp_path, settings, stack)
        both = [packing.start("whole", workers=2) for _ in range(2)]
        for each in both:
            each.succeeds()
        packing.check()
