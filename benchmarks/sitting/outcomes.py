"""Tests of a sitting: pytest in a process of its own, each test's outcome kept even where time runs out."""

from __future__ import annotations

import importlib.util
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.sitting.ledger import Ledger, PartlyFailedError, run_command
from emma.base.errors import CheckFailedError

__all__ = ["gpu_tests", "run_tests"]

ROOT = Path(__file__).resolve().parents[2]
_END = 3.0
"""Seconds that are kept of a stage's limit for reading what pytest has said."""
_LINE = re.compile(
    r"(PASSED|FAILED|ERROR|SKIPPED) +(\S+\.py::.+)|(\S+\.py::.+) (PASSED|FAILED|ERROR|SKIPPED)\b"
)
"""With several processes the outcome comes first, with one the test."""
_NAMES = {"PASSED": "passed", "FAILED": "failure", "ERROR": "error", "SKIPPED": "skipped"}


def gpu_tests() -> tuple[str, ...]:
    """Files that hold tests marked gpu: nothing else is imported, so that a package which only other tests need may be
    missing."""
    files = (ROOT / "tests").rglob("test_*.py")
    return tuple(
        str(path.relative_to(ROOT)) for path in sorted(files) if "pytest.mark.gpu" in path.read_text("utf-8")
    )


def run_tests(ledger: Ledger, work: Path, selection: tuple[str, ...], limit: float) -> dict[str, Any]:
    """Runs pytest on a selection (words of its command line).

    Returns:
        Number of tests by outcome, and each with its seconds, why it did not pass, and what it printed; of those that were
        not over at the limit nothing, and of the others then the outcome alone. With `--collect-only`, the tests' names.

    Raises:
        PartlyFailedError: not all passed or were skipped; with the same result.
        CheckFailedError: pytest ran no test.
    """
    report = work / "tests.xml"
    report.unlink(missing_ok=True)
    # Tests share what they keep between sessions through pytest's cache, whose usual place may not be writable.
    options = ["-v", "-rA", "-o", f"cache_dir={work / 'pytest'}", "-o", "junit_logging=system-out"]
    if importlib.util.find_spec("xdist") and "gpu" in selection and "--collect-only" not in selection:
        # Tests of one card are tiny, and one at a time would leave it idle.
        options += ["-n", "6", "--dist", "worksteal"]
    end = time.monotonic() + limit - _END
    code, said = run_command(
        ledger,
        ["-m", "pytest", *options, f"--junitxml={report}", "--continue-on-collection-errors", *selection],
        limit,
        lambda: time.monotonic() > end,
    )
    if "--collect-only" in selection:
        found = [line.strip() for line in said.splitlines() if re.search(r"::|<Function ", line)]
        if code or not found:
            raise CheckFailedError(f"exit code {code}: {said[-2000:]}")
        return {"exit_code": code, "collected": found}
    tests = (
        [_outcome(case) for case in ElementTree.parse(report).iter("testcase")] if report.is_file() else []
    )
    tests = tests or list(_lines(said))
    if not tests:
        raise CheckFailedError(f"exit code {code}, no test has run: {said[-2000:]}")
    counts = Counter(test["outcome"] for test in tests)
    result = {"counts": dict(counts), "exit_code": code, "tests": tests}
    if code is None:
        raise PartlyFailedError(f"not done after {limit:.0f} s: {dict(counts)}", result)
    if code:
        raise PartlyFailedError(f"not all tests pass: {dict(counts)}", result)
    return result


def _outcome(case: ElementTree.Element) -> dict[str, Any]:
    outcome, why = "passed", ""
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            outcome, why = child.tag, f"{child.get('message') or ''}\n{(child.text or '')[-2000:]}".strip()
    printed = "".join(child.text or "" for child in case if child.tag == "system-out").strip()
    name = f"{case.get('classname')}::{case.get('name')}"
    return {"test": name, "outcome": outcome, "seconds": float(case.get("time") or 0), "why": why,
            "printed": printed[-1000:]}  # fmt: skip


def _lines(said: str) -> Iterator[dict[str, Any]]:
    """Outcomes from the lines that pytest wrote as tests ended; its report is written at the end only."""
    for line in said.splitlines():
        if found := _LINE.search(line):
            outcome, test = (found[1], found[2]) if found[1] else (found[4], found[3])
            yield {"test": test.strip(), "outcome": _NAMES[outcome]}
