"""Mutants of what must never be wrong: `*.yaml` beside this file, one text to replace and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

__all__ = ["ROOT", "Mutant", "all_mutants"]

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Mutant:
    """One change that breaks something.

    Attributes:
        file: relative to the repository.
        old: text that is found in it exactly once.
        new: what takes its place.
        breaks: what a user would suffer from.
        tests: the nearest tests, as pytest takes them; one of them must fail.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.breaks}"

    def faults(self, root: Path = ROOT) -> list[str]:
        """Why the entry says nothing any more."""
        found = []
        times = (
            (root / self.file).read_text(encoding="utf-8").count(self.old)
            if (root / self.file).is_file()
            else 0
        )
        if times != 1:
            found.append(f"{self.file}: its old text is found {times} times, not once: {self.old!r}")
        if self.old == self.new or not self.tests:
            found.append(f"{self}: it changes nothing, or no test is named")
        found += [
            f"{self}: no {test}" for test in self.tests if not (root / test.partition("::")[0]).exists()
        ]
        return found

    def apply(self, root: Path) -> None:
        """Changes the file below `root`."""
        path = root / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")


def all_mutants() -> list[Mutant]:
    """Every entry, in order."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        for entry in YAML(typ="safe").load(path):
            found.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}))
    return found
