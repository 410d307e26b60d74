"""The sandbox, attacked: each escape is tried, and what is outside is looked at afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.sandbox import sandbox as module
from emma.tools.evaluation.sandbox.sandbox import Limits, Sandbox, Step
from tests.tools.evaluation.sandbox.isolation import needs_isolation, python_view, run_python


def processes_with(marker: str) -> list[int]:
    """Processes of this machine whose command line has a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_what_a_program_says_and_how_it_ends() -> None:
    outcome = run_python("import sys\nprint('ü')\nprint('no', file=sys.stderr)\nsys.exit(3)")
    assert (outcome.code, outcome.stopped, outcome.stdout, outcome.stderr) == (3, None, "ü\n", "no\n")
    assert outcome.describe() == "exit code 3: no" and not outcome.succeeded
    aborted = run_python("import os\nos.abort()")
    assert (aborted.code, aborted.stopped) == (None, "SIGABRT") and not aborted.succeeded
    assert run_python("").succeeded
    # Texts that are no valid UTF-8, or have no end of line, reach the program's file as they are.
    assert run_python("print('\ud800')").code == 1
    assert run_python("\r\nimport sys\rsys.exit(4)").code == 4
    assert run_python("x = '\0'").code == 1


def test_steps_run_in_order_up_to_the_first_that_fails() -> None:
    needs_isolation()
    box = Sandbox(*python_view(), Limits())
    write = Step(
        ["python3", "-I", "-c", "import sys; open('made', 'w').write('1'); print(2, file=sys.stderr)"], 20
    )
    read = Step(["python3", "-I", "-c", "print(open('made').read())"], 20)
    outcome = box.run({}, [write, read])
    # Only the last step's warnings count as such.
    assert (outcome.step, outcome.stdout, outcome.stderr) == (1, "2\n1\n", "")
    assert box.run({}, [read, write]).step == 0
    assert box.run({}, [read]).code == 1, "a job sees the files of another"


def test_a_step_finds_no_processes_of_the_one_before() -> None:
    needs_isolation()
    left = Step(["python3", "-I", "-c", "import os, time\nif os.fork() == 0: time.sleep(60)"], 20)
    look = Step(
        ["python3", "-I", "-c", "import os; print([n for n in os.listdir('/proc') if n.isdigit()][1:-1])"], 20
    )
    assert Sandbox(*python_view(), Limits()).run({}, [left, look]).stdout == "[]\n"


def test_a_command_that_cannot_be_started_is_no_failing_program() -> None:
    needs_isolation()
    with pytest.raises(UserError, match="nosuch cannot be started"):
        Sandbox(*python_view(), Limits()).run({}, [Step(["nosuch"], 5)])


def test_output_without_end_is_cut_and_time_is_kept() -> None:
    outcome = run_python("while True: print('x' * 1000)", seconds=0.5)
    assert outcome.stopped == "time" and outcome.seconds < 15
    assert len(outcome.stdout) == module._KEPT


def test_a_child_that_left_its_session_is_gone_with_its_files() -> None:
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    outcome = run_python(
        f"""
import os
if os.fork() == 0:
    os.setsid()
    for number in range(3):
        os.close(number)
    os.execvp("python3", ["python3", "-c", "import time; time.sleep(300)", "{marker}"])
import time
time.sleep(0.5)
"""
    )
    assert outcome.code == 0
    assert processes_with(marker) == []


@pytest.mark.parametrize("victim", ["cell", "caller"])
def test_nothing_runs_on_when_the_caller_is_killed(victim: str, tmp_path: Path) -> None:
    needs_isolation()
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    caller = tmp_path / "caller.py"
    caller.write_text(
        "from emma.tools.evaluation.sandbox.sandbox import *\n"
        "from tests.tools.evaluation.sandbox.isolation import python_view\n"
        f"command = ['python3', '-I', '-c', 'import time; time.sleep(300)', '{marker}']\n"
        "Sandbox(*python_view(), Limits()).run({}, [Step(command, 200)])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(caller)], env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not any(pid != process.pid for pid in processes_with(marker)):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        if victim == "caller":
            process.kill()
        else:
            (first, *_) = [pid for pid in processes_with("cell.py") if _parent(pid) == process.pid]
            os.kill(first, signal.SIGKILL)
        end = time.monotonic() + 20
        while processes_with(marker):
            assert time.monotonic() < end, "the program outlived its caller"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_memory_of_many_processes_counts_together() -> None:
    program = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytes(100 << 20)
        held = bytearray(held)
        time.sleep(60)
time.sleep(60)
"""
    outcome = run_python(program, limits=Limits(memory=300 << 20), seconds=30)
    assert outcome.stopped == "memory"


def test_the_machine_is_read_only_and_mostly_out_of_sight(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    outcome = run_python(
        f"""
import os
print(sorted(os.listdir("/")))
print(os.path.exists("{tmp_path}/secret"), os.getuid(), os.getgroups() in ([], [65534]))
print(sorted(key for key in os.environ))
print([line.split()[1] for line in open("/proc/mounts")
       if "ro" not in line.split()[3].split(",") and line.split()[1] not in ("/proc", "/tmp")
       and not line.split()[1].startswith("/dev/")])
"""
    )
    lines = outcome.stdout.splitlines()
    assert {"home", "root", "var", "run", "sys", "mnt", "opt", "srv"} & set(eval(lines[0])) <= {
        place.split("/")[1] for place in python_view()[0]
    }
    assert lines[1] == "False 65534 True"
    assert set(eval(lines[2])) <= {"HOME", "TMPDIR", "LC_CTYPE", *python_view()[1]}
    assert lines[3] == "[]", "a mount is writable"


def test_many_at_once() -> None:
    needs_isolation()
    box = Sandbox(*python_view(), Limits())
    codes: list[int | None] = []

    def one(number: int) -> None:
        codes.append(box.run({}, [Step(["python3", "-I", "-c", f"raise SystemExit({number})"], 30)]).code)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(8))  # type: ignore[type-var]


def test_a_refusal_says_why_and_what_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs_isolation()
    cell = tmp_path / "cell.py"
    text = Path(module.__file__).with_name("cell.py").read_text()
    assert text.count("    os.unshare(\n") == 1
    cell.write_text(
        text.replace(
            "    os.unshare(\n", "    raise OSError(1, 'Operation not permitted')\n    os.unshare(\n"
        )
    )
    box = Sandbox(*python_view(), Limits(), cell)
    with pytest.raises(
        UserError, match=r"cannot be isolated on this machine \(Operation not permitted\): in a container"
    ):
        box.run({}, [Step(["true"], 5)])
    monkeypatch.setattr(os, "uname", lambda: type("U", (), {"release": "4.18.0-372.el8"}))
    with pytest.raises(UserError, match=r"needs Linux 5\.14 or later, and this is 4\.18\.0-372\.el8"):
        box.run({}, [Step(["true"], 5)])


SPIN = "import time\nwhile time.process_time() < {}: pass\n"


@pytest.mark.parametrize(
    ("program", "stopped"),
    [
        (SPIN.format(0.6), None),
        ("import os\nos.fork()\nos.fork()\nwhile True: pass", "time"),
        ("import time\ntime.sleep(60)", "time"),
    ],
)
def test_a_starved_machine_takes_no_time_away(program: str, stopped: str | None) -> None:
    """Beside four others on one processor, 0.6 seconds take three; neither idlers gain by it, nor those that wait for each
    other."""
    needs_isolation()
    before = os.sched_getaffinity(0)
    spin = [sys.executable, "-I", "-S", "-c", "while True: pass"]
    try:
        os.sched_setaffinity(0, {min(before)})
        others = [subprocess.Popen(spin) for _ in range(4)]
        try:
            outcome = run_python(program, seconds=1)
        finally:
            for other in others:
                other.kill()
                other.wait()
    finally:
        os.sched_setaffinity(0, before)
    assert outcome.stopped == stopped, outcome
    assert outcome.seconds > 1
    assert stopped is None or outcome.seconds < 8
