"""The list of mutants fits the code; `make test-mutants` runs them."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.entries import ROOT, all_mutants

LEAST = 60


def test_every_entry_changes_one_place_and_names_tests_that_exist() -> None:
    mutants = all_mutants()
    assert [fault for mutant in mutants for fault in mutant.faults()] == []
    assert len(mutants) >= LEAST
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in mutants}) == len(mutants)


def test_a_stale_entry_is_a_fault(tmp_path: Path) -> None:
    mutant = all_mutants()[0]
    path = tmp_path / mutant.file
    path.parent.mkdir(parents=True)
    path.write_text(mutant.old * 2)
    assert any("found 2 times" in fault for fault in mutant.faults(tmp_path))
    path.write_text(mutant.old)
    assert all("found" not in fault for fault in mutant.faults(tmp_path))
    mutant.apply(tmp_path)
    assert path.read_text() == mutant.new


def test_no_mutant_is_a_slip_of_syntax(tmp_path: Path) -> None:
    for mutant in all_mutants():
        if mutant.file.endswith(".py"):
            path = tmp_path / mutant.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / mutant.file).read_bytes())
            mutant.apply(tmp_path)
            compile(path.read_text(encoding="utf-8"), str(path), "exec")
