"""The proof: it accepts the sandbox, and finds out each wall that is taken away."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.sandbox import proof, sandbox
from emma.tools.evaluation.sandbox.proof import prove
from tests.tools.evaluation.sandbox.isolation import needs_isolation, python_view

CELL = Path(sandbox.__file__).with_name("cell.py")

# What is taken out of the sandbox → the attack that finds out.
WALLS = {
    "the network": ("os.CLONE_NEWPID | os.CLONE_NEWNET", "os.CLONE_NEWPID", "reach the network"),
    "variables": ('job["environment"])', '{**job["environment"], "HF_TOKEN": "x"})', "read the home folder and other secrets"),
    "read-only mounts": ("_ATTR_RDONLY | _ATTR_NOSUID", "_ATTR_NOSUID", "write outside"),
    "nested user namespaces": ('max_user_namespaces", "0")', 'max_user_namespaces", "9")', "gain privileges"),
    "capabilities": ("    _prctl(_NO_NEW_PRIVS, 1)\n", "", "gain privileges"),
    "the limit of processes": ("resource.RLIMIT_NPROC, limits[", "resource.RLIMIT_NPROC, 9999 + 0 * limits[", "have any number of processes"),
    "the limit of memory": ('resource.RLIMIT_DATA, limits["memory"]', "resource.RLIMIT_DATA, 1 << 40", "take more memory than allowed"),
    "the memory of all": ('_used() > job["limits"]["memory"]', "False", "take more memory than allowed, shared by processes"),
    "files without names": ("sum(nameless.values())", "0", "take more memory than allowed, in files without names"),
    "the limit of files": ('resource.RLIMIT_FSIZE, limits["file"]', "resource.RLIMIT_FSIZE, 1 << 40", "write a large file"),
    "the limit of the disk": ("size={limits['disk']}", "size=300m", "fill the disk"),
    "time": ('stopped = "time"', "pass", "outlive its time"),
}  # fmt: skip


def test_the_sandbox_holds() -> None:
    needs_isolation()
    prove(*python_view())
    names = [attack.name for attack in proof.ATTACKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("wall", WALLS)
def test_each_wall_that_is_missing_is_found_out(
    wall: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_isolation()
    monkeypatch.setattr(sandbox, "_GRACE", 3.0)
    old, new, finder = WALLS[wall]
    text = CELL.read_text()
    assert text.count(old) == 1
    cell = tmp_path / "cell.py"
    cell.write_text(text.replace(old, new))
    # The attack in question and the harmless programs: the others would take their time.
    chosen = tuple(a for a in proof.ATTACKS if a.name == finder or "harmless" in a.name)
    assert len(chosen) == 2
    monkeypatch.setattr(proof, "ATTACKS", chosen)
    with pytest.raises(UserError, match=f"does not hold on this machine: `{finder}`"):
        prove(*python_view(), cell)


def test_a_folder_that_shows_secrets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_isolation()
    show, environment = python_view()
    # Not below /tmp, which is the sandbox's own inside.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        Path(home).chmod(0o755)
        monkeypatch.setenv("HOME", home)
        with pytest.raises(UserError, match="`read the home folder and other secrets`"):
            prove({**show, home: home}, environment)


def test_what_was_reached_or_changed_outside_is_seen_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that say they were held, though they were not."""
    needs_isolation()

    def run(self: sandbox.Sandbox, files: dict[str, str], steps: object) -> sandbox.Outcome:
        program = files["program.py"]
        if "127.0.0.1" in program:
            port = int(program.split('("127.0.0.1", ')[1].split(")")[0])
            socket.create_connection(("127.0.0.1", port)).close()
        else:
            with Path(program.split('path in ["')[1].split('"')[0]).open("a") as handle:
                handle.write("x")
        return sandbox.Outcome(0, 42, None, "", "", 0.1)

    monkeypatch.setattr(sandbox.Sandbox, "run", run)
    attacks = {attack.name: attack for attack in proof.ATTACKS}
    for name, seen in (
        ("reach the network", "a connection that arrived"),
        ("write outside", "a file that was changed"),
    ):
        monkeypatch.setattr(proof, "ATTACKS", (attacks[name],))
        with pytest.raises(UserError, match=f"{name}` ended with {seen}"):
            prove(*python_view())
