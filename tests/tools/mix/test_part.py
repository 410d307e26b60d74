"""A part of a store, and validation groups with a seed of their own."""

from __future__ import annotations

from emma.tools.mix.build import build_mix
from emma.tools.mix.catalogue import Catalogue, load_catalogues
from emma.tools.mix.layout import MixInfo, read_dataset_info
from emma.tools.mix.part import part_of
from emma.tools.mix.prepare import expected_fingerprints, fingerprint_of, prepare
from emma.tools.mix.verify import verify_mix
from tests.tools.mix.conftest import MakeSettings


def kept(catalogue: Catalogue) -> dict[str, set[int]]:
    """Places of the documents that training may see, by language."""
    found: dict[str, set[int]] = {language: set() for language in catalogue.languages}
    for part in catalogue.parts:
        for at in catalogue.training(part).nonzero()[0]:
            found[catalogue.languages[int(catalogue.language[part.start + at])]].add(part.start + int(at))
    return found


def test_parts_are_nested_leave_no_source_empty_and_do_not_depend_on_the_seed(
    make_settings: MakeSettings,
) -> None:
    prepared = prepare(make_settings())
    catalogues = load_catalogues(prepared.components)
    whole = {name: kept(catalogue) for name, catalogue in catalogues.items()}
    assert {name: kept(each) for name, each in part_of(catalogues, 1.0).items()} == whole
    before = whole
    for part in (0.5, 0.2, 0.05, 1e-9):
        now = {name: kept(each) for name, each in part_of(catalogues, part).items()}
        for name, languages in now.items():
            for language, documents in languages.items():
                assert documents <= before[name][language] and documents, (name, language, part)
        before = now
    assert all(len(documents) == 1 for languages in before.values() for documents in languages.values())
    half = part_of(catalogues, 0.5)
    count = sum(len(documents) for name in half for documents in kept(half[name]).values())
    total = sum(len(documents) for languages in whole.values() for documents in languages.values())
    assert 0.35 < count / total < 0.65


def test_a_mix_of_a_part_repeats_what_it_holds_and_passes_the_check(make_settings: MakeSettings) -> None:
    whole, part = make_settings("whole"), make_settings("part", part_of_store=0.5)
    plans = [prepare(settings).plan for settings in (whole, part)]
    epochs = [sum(row.epochs for row in plan.sources) / len(plan.sources) for plan in plans]
    assert 1.5 < epochs[1] / epochs[0] < 3
    assert [sum(row.target_tokens for row in plan.sources) for plan in plans] == [whole.tokens] * 2
    info = build_mix(part)
    prepared = prepare(part)
    found = verify_mix(info.folder, fingerprint=fingerprint_of(part, prepared))
    assert found.faults == []
    assert len({expected_fingerprints(each)[0] for each in (whole, part)}) == 2


def documents(info: MixInfo) -> dict[str, bytes]:
    groups = {name: (info.validation(name) / "rows.npy").read_bytes() for name in info.groups}
    return {**groups, "train": (read_dataset_info(info.train).folder / "rows.npy").read_bytes()}


def test_validation_documents_have_a_seed_of_their_own(make_settings: MakeSettings) -> None:
    base = make_settings().mix.validation.model_dump() | {"max_tokens": 400}

    def build(name: str, seed: int, own: int | None) -> MixInfo:
        return build_mix(make_settings(name, seed=seed, validation={**base, "seed": own}))

    # The mix's own seed said again is the same mix.
    one, again = build("one", 7, None), build("again", 7, 7)
    assert one.fingerprint == again.fingerprint and documents(one) == documents(again)
    first, second = documents(build("first", 1, 7)), documents(build("second", 2, 7))
    assert first.pop("train") != second.pop("train")
    assert first == second
    other = documents(build("other", 1, 8))
    assert any(other[name] != rows for name, rows in first.items())
