"""What the operating system refuses reaches the user as one message: with the path, what it means, and what to do."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.base.system_errors import DEBUG, PASSING, explain, named, report


def fails(place: Path, how: str) -> OSError:
    """A real error of the operating system."""
    loop, file = place / "loop", place / "file"
    loop.symlink_to(loop)
    file.write_text("x")
    actions = {
        "full": lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"),
        "circle": lambda: loop.read_text(),
        "file as folder": lambda: write_text(file / "inside", "x"),
        "folder as file": lambda: place.read_text(),
        "folder of a file": lambda: file.mkdir(exist_ok=True),
        "long": lambda: write_text(place / ("x" * 300), "x"),
        "absent": lambda: (place / "absent").read_bytes(),
    }
    with pytest.raises(OSError) as caught:
        actions[how]()
    return caught.value


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("full", "disk is full"),
        ("circle", "circle"),
        ("file as folder", "not the folder"),
        ("folder as file", "is a folder"),
        ("folder of a file", "exists already"),
        ("long", "too long"),
        ("absent", "does not exist"),
    ],
)
def test_each_error_is_put_into_words(how: str, says: str, tmp_path: Path) -> None:
    fault = explain(fails(tmp_path, how))
    assert fault is not None and fault.exit_code == 2
    assert says in str(fault) and "Fix: " in str(fault)
    if how != "full":
        assert str(tmp_path) in str(fault)


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, named(tmp_path / "shard"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert str(tmp_path / "shard") in str(explain(caught.value))


LIMITED = """
import resource, sys
from pathlib import Path
from emma.base.files import append_line, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = Path(sys.argv[1])
append_line(path / "lines", b"a" * 900)
for write in (lambda: append_line(path / "lines", b"b" * 900), lambda: write_text(path / "text", "x" * 2000)):
    try:
        write()
    except OSError as error:
        print(error.errno, error.filename)
"""


def test_a_line_that_is_cut_short_is_taken_back(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "before")
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.split("\n")[:2]
    assert first == f"{errno.ENOSPC} {tmp_path / 'lines'}"
    assert second == f"{errno.EFBIG} {tmp_path / 'text'}"
    assert (tmp_path / "lines").read_bytes() == b"a" * 900 + b"\n"
    assert (tmp_path / "text").read_text() == "before" and len(list(tmp_path.iterdir())) == 2


def test_faults_that_may_pass_have_an_exit_code_of_their_own() -> None:
    for number in (errno.EIO, errno.ESTALE):
        fault = explain(OSError(number, os.strerror(number), "/data/shard"))
        assert fault is not None and fault.exit_code == PASSING and "/data/shard" in str(fault)
    memory = explain(MemoryError())
    assert memory is not None and memory.exit_code == PASSING


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named_as_such() -> None:
    with (
        concurrent.futures.ProcessPoolExecutor(1) as pool,
        pytest.raises(concurrent.futures.process.BrokenProcessPool) as caught,
    ):
        pool.submit(_die).result()
    fault = explain(caught.value)
    assert fault is not None and "memory" in str(fault) and fault.exit_code == PASSING


def test_a_failed_program_is_quoted() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run(
            [sys.executable, "-c", "import sys; sys.exit('no such thing')"], check=True, capture_output=True
        )
    assert "no such thing" in str(explain(caught.value))


def test_what_is_no_fault_of_the_machine_stays_a_traceback() -> None:
    assert explain(ZeroDivisionError()) is None
    assert explain(OSError("no number")) is None


def emma(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-P", "-m", "emma.cli", *arguments], stderr=subprocess.PIPE, text=True, **options
    )


def test_the_command_line_says_it_in_one_message(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = emma("recipe", "show", "demo", stdout=full)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.startswith("error: ") and "disk is full" in done.stderr and "Traceback" not in done.stderr
    )
    (tmp_path / "file").write_text("")
    build = ("corpus", "build", "demo", f"paths.corpus={tmp_path / 'file' / 'inside'}")
    done = emma(*build, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "not a folder" in done.stderr
    assert "Traceback" in emma("--debug", *build, stdout=subprocess.DEVNULL).stderr


def test_what_libraries_say_of_the_machine_is_put_into_words() -> None:
    full = explain(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert full is not None and "the disk is full" in str(full) and full.exit_code == 2
    for words in ("can't start new thread", "[enforce fail] DefaultCPUAllocator: can't allocate memory"):
        passing = explain(RuntimeError(words))
        assert passing is not None and passing.exit_code == PASSING and "Fix: " in str(passing)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(errno.EIO, "x", "/data"), PASSING),
        (UserError("a mistake"), 2),
        (ZeroDivisionError(), None),
        (SystemExit(3), None),
    ],
)
def test_an_entry_point_reports_once(
    error: BaseException,
    code: int | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DEBUG, raising=False)
    assert report(error) == code
    assert len(capsys.readouterr().err.splitlines()) == (code is not None)
    monkeypatch.setenv(DEBUG, "1")
    assert report(error) == (130 if code == 130 else None), "tracebacks are asked for"


def test_what_torch_hides_while_it_closes_its_archive_is_found() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/__0_0.distcp")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 576 vs 470")
    fault = explain(caught.value)
    assert fault is not None and "/data/__0_0.distcp: the disk is full" in str(fault)


def test_a_message_that_blames_a_file_for_what_the_process_lacks_holds_the_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEBUG, raising=False)

    def said(inner: Exception, words: str) -> str:
        with pytest.raises(UserError) as caught:
            try:
                raise inner
            except OSError:
                raise UserError(words) from None
        assert report(caught.value) == 2
        return capsys.readouterr().err

    # The error of the system names the file; a library's, or a worker's, is words alone.
    open_files = OSError(errno.EMFILE, "Too many open files", "/data/a.jsonl")
    assert said(open_files, "/data/a.jsonl: damaged").startswith("error: /data/a.jsonl: this process has too")
    words = "/model: transformers cannot load it: Too many open files (24)"
    assert said(OSError("Too many open files (24)"), words).startswith(
        f"error: {words}. Fix: raise the limit"
    )
    assert said(OSError(errno.ENOENT, "No such file", "/data/b"), "/data/b: no such file") == (
        "error: /data/b: no such file\n"
    )


def test_a_checkpoint_that_megatron_could_not_write_is_one_message() -> None:
    """Its writer keeps the type of what it met, and torch gathers that of each rank in an exception of its own."""
    worker = RuntimeError(
        "Worker failure: An error is caught while starting worker 0, error: <class 'OSError'>"
    )

    class Gathered(BaseException):
        failures = {0: (worker, None)}  # noqa: RUF012

    fault = explain(Gathered())
    assert fault is not None and fault.exit_code == PASSING and "file of the checkpoint" in str(fault)
    worker.args = ("Worker failure: An error is caught while starting worker 0, error: <class 'KeyError'>",)
    assert explain(Gathered()) is None
