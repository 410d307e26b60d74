"""Files of raw text as people have them, and the sources that they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.schema.corpus import Corpus
from emma.tools.adapt.raw import UNSTATED, find_sources
from emma.tools.corpus.survey import survey

WANTED = ["swh", "yor", "eng"]
SWAHILI = "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa."
YORUBA = "Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba."
ENGLISH = "All human beings are born free and equal in dignity and rights."


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("·", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_languages_are_found_in_columns_names_and_folders(tmp_path: Path) -> None:
    files = {
        "swh_Latn/a.jsonl": f'{{"content": "{SWAHILI} a"}}\n',
        "swh_Latn/b.jsonl": f'{{"content": "{SWAHILI} b"}}\n',
        "web/news.yo.txt": YORUBA,
        "web/new.txt": "not in Newari",
        "web/notes.md": "no text",
        "web/all.csv": f'text,Lang\n{ENGLISH},en\n"{SWAHILI} c",sw\n',
        "pairs/n.en-sw.en": f"{ENGLISH}\n",
        "pairs/n.en-sw.sw": f"{SWAHILI}\n",
        "pairs/en-yo.tsv": f"src_text\ttgt_text\n{ENGLISH}\t{YORUBA}\n",
    }
    write(tmp_path, **files)
    found = find_sources([str(tmp_path)], WANTED, None)
    assert {source["path"].removeprefix(f"{tmp_path}/") for source in found.sources.values()} == {
        "swh_Latn/*.jsonl",
        "web/news.yo.txt",
        "web/all.csv",
        "pairs/n.en-sw.en",
        "pairs/en-yo.tsv",
    }
    assert {source["license"] for source in found.sources.values()} == {UNSTATED}
    passed_over = sorted(line.removeprefix(f"{tmp_path}/").split(":")[0] for line in found.passed_over)
    assert passed_over == ["web/new.txt", "web/notes.md"]
    read = survey(Corpus.model_validate({"sources": found.sources}), WANTED)
    documents = {key: size.documents for key, size in read.sizes.items()}
    assert not read.unusable
    assert documents == {
        ("monolingual", "swh_Latn"): 3,
        ("monolingual", "yor_Latn"): 1,
        ("monolingual", "eng_Latn"): 1,
        ("parallel", "eng_Latn-swh_Latn"): 1,
        ("parallel", "eng_Latn-yor_Latn"): 1,
    }
    assert read.sizes["monolingual", "yor_Latn"].bytes == len(YORUBA.encode())


def test_a_language_can_be_said_for_a_file(tmp_path: Path) -> None:
    write(tmp_path, **{"x.txt": SWAHILI})
    (source,) = find_sources([f"{tmp_path}/x.txt=sw"], WANTED, "MIT").sources.values()
    assert (source["language"], source["license"]) == ("sw", "MIT")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "no such file or folder"),
        ("x.txt", "says that it is in a wanted language"),
        ("a*b.txt", "as patterns"),
    ],
)
def test_what_holds_no_text_is_refused(tmp_path: Path, name: str, says: str) -> None:
    write(tmp_path, **{"x.txt": SWAHILI, "a*b.txt": SWAHILI})
    with pytest.raises(UserError, match=rf"(?s)--text: .*{says}.*Fix: "):
        find_sources([str(tmp_path / name)], WANTED, None)


def test_samples_do_not_depend_on_the_order(tmp_path: Path) -> None:
    lines = [f'{{"text": "{SWAHILI} {n}", "language": "sw"}}\n' for n in range(200)]
    write(tmp_path, **{"a.jsonl": "".join(lines), "b.jsonl": "".join(reversed(lines))})
    samples = []
    for name in "ab":
        sources = find_sources([str(tmp_path / f"{name}.jsonl")], WANTED, "MIT").sources
        read = survey(Corpus.model_validate({"sources": sources}), WANTED, characters=2000)
        samples.append(read.samples["monolingual", "swh_Latn"].texts)
    assert samples[0] == samples[1]
    assert 2000 <= sum(len(text) for (text,) in samples[0]) < 2000 + 2 * len(lines[0])


def test_labels_and_scripts_that_fit_nothing_are_counted(tmp_path: Path) -> None:
    rows = [("sw", SWAHILI), ("C", ENGLISH), ("en", "Все люди рождаются свободными"), ("de", "Alle Menschen")]
    text = "".join(f'{{"text": "{text}", "language": "{label}"}}\n' for label, text in rows)
    write(tmp_path, **{"a.jsonl": text})
    sources = find_sources([str(tmp_path)], WANTED, "MIT").sources
    read = survey(Corpus.model_validate({"sources": sources}), WANTED)
    assert (dict(read.unknown), dict(read.foreign), dict(read.others)) == (
        {"C": 1},
        {"eng_Latn": 1},
        {"de": 1},
    )
