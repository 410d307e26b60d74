"""One writer at a time: which launch a run belongs to, and how every other one is kept from writing. Needs no torch.

`docs/launch_protocol.md` says what each step does, what a crash leaves, and why it is enough. In short: a launch takes
the next number by a hard link that only one process can make, renames and empties the folder through which its
predecessors write, and replaces the logs that they hold open. From then on whatever they do fails or reaches files that
nobody reads; nothing depends on their looking first. That they do look is for a clear message.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emma.base.claims import is_at, temporary_name
from emma.base.errors import UserError
from emma.base.files import fsync_path, read_json, write_json
from emma.base.manifest import now
from emma.tools.runs.checkpoints import checkpoint_folder, complete_steps
from emma.tools.runs.claim import Claim, user

__all__ = ["LOGS", "Claims", "DisplacedError", "Fence", "InUseError", "at"]

LOGS = ("metrics.jsonl", "checkpoints.jsonl", "alerts.jsonl")
"""Files of the run folder that its launches append to."""

_CLAIM = re.compile(r"(\d{6,})\.json")
_DESK = re.compile(r"(\d{6,})-[0-9a-f]+")


def at(point: str) -> None:
    """A named point between two steps of a launch: tests stop, kill and interleave launches here."""


class DisplacedError(UserError):
    """This launch has lost the run to another one, or was declared dead; it writes nothing more."""

    exit_code = 3


class InUseError(UserError):
    """Another launch writes the run, as far as anyone can tell."""


class Claims:
    """The claims of a run, `RUN/launches/`: files are added, never changed or removed."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "launches"

    def latest(self) -> Claim | None:
        """The claim with the highest number, ended or not."""
        number = max(self.numbers(), default=None)
        return None if number is None else self.read(number)

    def numbers(self) -> list[int]:
        """Of all claims, in no order."""
        names = (_CLAIM.fullmatch(path.name) for path in self.folder.glob("*.json"))
        return [int(name[1]) for name in names if name]

    def read(self, number: int) -> Claim:
        """A claim."""
        return Claim(**read_json(self.file(number)))

    def writer(self) -> Claim | None:
        """The latest claim, unless its launch has ended."""
        claim = self.latest()
        return claim if claim is not None and self.end_of(claim.number) is None else None

    def file(self, number: int) -> Path:
        """Where a claim is."""
        return self.folder / f"{number:06d}.json"

    def end_file(self, number: int) -> Path:
        """Where the end of a launch is recorded."""
        return self.folder / f"{number:06d}.ended.json"

    def end_of(self, number: int) -> dict[str, Any] | None:
        """How a launch ended; None while nobody has said so."""
        file = self.end_file(number)
        return dict(read_json(file)) if file.is_file() else None

    def record_end(self, number: int, how: str) -> None:
        """Records the end of a launch; the first record stays."""
        if not self.end_file(number).is_file():
            _create(self.end_file(number), {"how": how, "by": user(), "time": now()})

    def take(self, gone: Callable[[Claim], str | None], kind: str = "process") -> Fence:
        """Takes the run for a new launch, and shuts out all earlier ones.

        Args:
            gone: how the writer ended, in words; None if it may live. Asked about a claim without an end.
            kind: see `Claim`.

        Raises:
            InUseError: the writer may be alive, or another launch took the run at the same moment.
            UserError: `checkpoints` is on another file system.
        """
        before = self.latest()
        if before is not None and self.end_of(before.number) is None:
            how = gone(before)
            if how is None:
                raise InUseError(
                    f"{self.file(before.number)}: {before} has been writing this run since {before.started}. "
                    "Fix: stop it, or add --take-over if it is gone (it stops before its next write)"
                )
            self.record_end(before.number, how)
        at("judged")
        claim = Claim.of_this_process(1 + (before.number if before else self._numbered_logs()), kind)
        fence = Fence(self.run, claim.number, claim.writer)
        self._check_file_system()
        # Before the claim: a desk that appeared after it could come too late to be cleared by the next launch.
        fence.desk.mkdir(parents=True)
        at("desk made")
        try:
            created = _create(self.file(claim.number), asdict(claim))
        except BaseException:
            shutil.rmtree(fence.desk, ignore_errors=True)
            raise
        if not created:
            # A later launch may have taken it away.
            shutil.rmtree(fence.desk, ignore_errors=True)
            raise InUseError(
                f"{self.file(claim.number)}: another launch took this run at this moment. Fix: look at it with "
                "`emma slurm jobs`; start again when it has ended"
            )
        at("claimed")
        try:
            fence.shut_out()
        except DisplacedError:
            raise
        except BaseException:
            fence.end("could not shut out earlier launches")
            raise
        return fence

    def _numbered_logs(self) -> int:
        """The last launch of an older version, which kept no claims."""
        old = self.run / "writer.json"
        if old.is_file():
            raise InUseError(
                f"{old}: a launch of an older version holds this run. Fix: remove the file when that launch has ended"
            )
        names = (path.name.split("-")[1] for path in (self.run / "logs").glob("launch-*"))
        return max(map(int, names), default=0)

    def _check_file_system(self) -> None:
        checkpoints = self.run / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        if checkpoints.stat().st_dev != self.run.stat().st_dev:
            raise UserError(
                f"{checkpoints} is on another file system than {self.run}, so checkpoints cannot be put in place by "
                "renaming them, which is what keeps two launches apart. Fix: move the whole run folder (paths.runs)"
            )


def desk_of(run: Path, number: int, writer: str) -> Path:
    """The folder of what a launch has not put in place yet. A file of that name: it can put nothing in place any more."""
    return run / "writing" / f"{number:06d}-{writer}"


class Fence:
    """What one launch may write, and only while the run is its own.

    Attributes:
        desk: `RUN/writing/NNNNNN-TOKEN/`, through which everything goes that the launch puts in place.
        saves: the folder in it that Megatron writes checkpoints to.
    """

    def __init__(self, run: Path, number: int, writer: str) -> None:
        self.run, self.number, self.writer = run, number, writer
        self.desk = desk_of(run, number, writer)
        self.saves = self.desk / "checkpoints"
        self._claims, self._open = Claims(run), dict[Path, int]()

    def held(self) -> bool:
        """Whether the run is this launch's as far as this machine sees now.

        A network file system may show a new claim late; what keeps this launch from writing then does not rest on
        this answer.
        """
        claim = self._claims.file(self.number)
        return (
            not self._claims.file(self.number + 1).exists()
            and not self._claims.end_file(self.number).exists()
            and claim.is_file()
            and read_json(claim)["writer"] == self.writer
        )

    def check(self, doing: str = "") -> None:
        """Refuses to go on without the run.

        Args:
            doing: what would be done; begins with a space.

        Raises:
            DisplacedError: another launch has it, or this one was declared dead.
        """
        if not self.held():
            raise self.displaced(doing)

    def displaced(self, doing: str = "") -> DisplacedError:
        """The error that ends a launch without its run."""
        after, end = self._claims.latest(), self._claims.end_of(self.number)
        why = (
            f"launch {after.number} ({after}), which took this run over"
            if after is not None and after.number > self.number
            else f"the end of this launch: {end['how'] if end else f'its claim or {self.desk} is gone'}"
        )
        return DisplacedError(
            f"{self._claims.folder} names {why}. Launch {self.number} writes nothing more{doing}; it stops"
        )

    def end(self, how: str) -> None:
        """Gives the run back; what is left on the desk is removed. Does nothing to a launch that has lost it."""
        self._claims.record_end(self.number, how)
        at("end recorded")
        shutil.rmtree(self.desk, ignore_errors=True)
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def write_json(self, target: Path, value: Any) -> None:
        """Writes a file of the run folder whole."""
        with self.writing(target) as source:
            write_json(source, value)

    @contextlib.contextmanager
    def writing(self, target: Path) -> Iterator[Path]:
        """Lends a file on the desk that takes the name `target` at the end."""
        with self.or_displaced():
            source = self.desk / temporary_name(target.name, "new")
            source.touch(exist_ok=False)
        yield source
        at("written")
        with self.or_displaced():
            source.replace(target)

    def take(self, source: Path, target: str) -> Path:
        """Moves a checkpoint of the run onto the desk, to be put back (`give`) under the name `target`."""
        with self.or_displaced():
            place = self.desk / "moving"
            place.mkdir(exist_ok=True)
            source.rename(place / target)
        at("taken")
        return place / target

    def give(self, folder: Path, target: Path) -> None:
        """Puts a folder from the desk in its place; a folder that is there already is deleted."""
        if target.exists():
            self.delete(target)
        with self.or_displaced():
            folder.rename(target)
        fsync_path(target.parent)

    def delete(self, folder: Path) -> None:
        """Deletes a folder of the run; an interrupted deletion leaves nothing under its name."""
        doomed = self.desk / temporary_name(folder.name)
        with self.or_displaced():
            folder.rename(doomed)
        at("doomed")
        shutil.rmtree(doomed, ignore_errors=True)  # with the desk, if not now

    def append(self, path: Path, line: bytes) -> None:
        """Appends a line to one of `LOGS`.

        The file stays open. A later launch replaces it, so that what an earlier one still writes reaches a file
        without a name. If it was replaced by a person, it is opened again.
        """
        if path not in self._open or not is_at(path, self._open[path]):
            self._reopen(path)
        at("log opened")
        line = line.rstrip(b"\n") + b"\n"
        written = os.write(self._open[path], line)
        if written < len(line):
            os.ftruncate(self._open[path], os.fstat(self._open[path]).st_size - written)
            raise OSError(f"{path}: no space left for a line")

    def _reopen(self, path: Path) -> None:
        if path in self._open:
            os.close(self._open.pop(path))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            with self.writing(path) as source:
                descriptor = os.open(source, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        # After the file was opened: if the run is still this launch's, the file is one that the next launch replaces.
        at("log found")
        if not self.held():
            os.close(descriptor)
            raise self.displaced()
        self._open[path] = descriptor

    def shut_out(self) -> None:
        """Makes every write of earlier launches fail, and finishes what they had completed."""
        desks = self._earlier_desks()
        for desk in desks:
            self._close(desk)
        for desk in self._unclaimed_desks():
            with self.or_displaced(), contextlib.suppress(FileNotFoundError):
                desk.rename(self.desk / f"before-{desk.name}")
        self._finish_for_others()
        for inside in self.desk.glob("before-*"):
            shutil.rmtree(inside)
        at("earlier desk emptied")
        for name in LOGS:
            path = self.run / name
            if path.is_file():
                with self.writing(path) as source:
                    shutil.copyfile(path, source)
                    fsync_path(source)
                at(f"{name} replaced")
        self.check()

    def _earlier_desks(self) -> list[Path]:
        """Desks of all earlier launches that nobody has closed yet, whether they exist or not."""
        closed = {number for path, number in self._desks() if path.is_file()}
        numbers = sorted(n for n in self._claims.numbers() if n < self.number and n not in closed)
        return [desk_of(self.run, claim.number, claim.writer) for claim in map(self._claims.read, numbers)]

    def _unclaimed_desks(self) -> list[Path]:
        """What processes left that never got their number, and so never wrote."""
        return [path for path, number in self._desks() if number < self.number and path.is_dir()]

    def _desks(self) -> list[tuple[Path, int]]:
        found = ((path, _DESK.fullmatch(path.name)) for path in self.desk.parent.iterdir())
        return sorted((path, int(name[1])) for path, name in found if name)

    def _close(self, desk: Path) -> None:
        """Takes a desk away, and puts a file in its place: whoever writes a checkpoint makes the folders above it."""
        tries = 0
        while not desk.is_file():
            tries += 1
            # Renamed, so that its path is gone at once; emptied later, so that a client with an old view of the folder
            # finds nothing in it.
            try:
                with self.or_displaced(), contextlib.suppress(FileNotFoundError):
                    desk.rename(self.desk / f"before-{desk.name}-{tries}")
            except PermissionError as error:
                raise UserError(
                    f"{desk}: this user may not move it ({error.strerror}), so its launch could still write. Fix: let its "
                    f"owner run `chmod -R g+w {desk.parent}`, or start the run as that user"
                ) from None
            at("earlier desk taken")
            with contextlib.suppress(FileExistsError):
                os.close(os.open(desk, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            at("earlier desk closed")

    def _finish_for_others(self) -> None:
        """Puts in place what an earlier launch had completed on its desk: checkpoints with their mark, and renames
        that it had begun."""
        checkpoints = self.run / "checkpoints"
        for moving in sorted(self.desk.rglob("moving")):
            for folder in moving.iterdir():
                if not (checkpoints / folder.name).exists():
                    self.give(folder, checkpoints / folder.name)
        for saves in sorted(self.desk.rglob("checkpoints")):
            for step in complete_steps(saves):
                target = checkpoint_folder(checkpoints, step)
                if not target.exists():
                    self.give(checkpoint_folder(saves, step), target)

    @contextlib.contextmanager
    def or_displaced(self) -> Iterator[None]:
        """Says why the desk is gone."""
        try:
            yield
        except OSError as error:
            if self.desk.is_dir() and self.held():
                raise
            raise self.displaced() from error


def _create(path: Path, value: Any) -> bool:
    """Writes a file that must not exist yet, whole; returns whether it is this call's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name, "new"))
    write_json(temporary, value)
    try:
        at("link")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        # Not the answer of `link` counts: over a network it may be lost and asked for again.
        created = temporary.stat().st_nlink == 2
        fsync_path(path.parent)
    finally:
        temporary.unlink()
    return created
