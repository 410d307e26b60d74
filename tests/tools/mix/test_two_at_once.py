"""Two processes that build one mix at the same time, each process 1 of its own pid namespace on one host."""

from __future__ import annotations

import sys
from pathlib import Path

from emma.tools.mix.build import build_mix
from tests.folders import content
from tests.pid_namespaces import contained, needs_pid_namespaces
from tests.tiny_mix import TinyMix
from tests.tools.mix.conftest import MakeSettings

BUILD = """
import os, sys
from pathlib import Path
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings
from tests.tiny_mix import tiny_data

if __name__ == "__main__":
    folder, store = map(Path, sys.argv[1:])
    assert os.getpid() == 1
    info = build_mix(MixSettings(tiny_data().mix, "mix", folder, store, 4000, 64, "0" * 64))
    print(info.fingerprint)
"""


def test_the_second_builder_waits_and_finds_the_mix_built(
    tmp_path: Path, make_settings: MakeSettings, tiny: TinyMix
) -> None:
    needs_pid_namespaces()
    settings = make_settings(samples=4000)
    alone = build_mix(settings)
    shared = settings.folder.with_name("shared")
    (tmp_path / "build.py").write_text(BUILD)
    command = [sys.executable, str(tmp_path / "build.py"), str(shared), str(tiny.store)]
    with contained(tmp_path / "log-1", command) as first:
        first.stop_when(lambda: any(shared.parent.glob(".shared.*.partial/train")))
        with contained(tmp_path / "log-2", command) as second:
            second.wait_for(f"{shared}: waiting for process 1 ")
            first.resume()
            first.succeeds()
            second.succeeds()
        assert {each.log.read_text().splitlines()[-1] for each in (first, second)} == {alone.fingerprint}
    assert content(shared) == content(settings.folder)
    assert sorted(path.name for path in shared.parent.iterdir()) == ["mix", "shared"]
