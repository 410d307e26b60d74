"""Every style of tokenizer: its ids are those of `transformers`, no text becomes a control token, and a wrong engine is
found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from emma.base.errors import UserError
from emma.base.processes import process_pool
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import certificate, engine
from emma.tools.pack.certificate import Certificate, certified_engine, certify
from emma.tools.pack.encoded import Encoded, joined
from emma.tools.pack.engine import (
    ENGINES,
    REFERENCE,
    UnreadableTokenizerError,
    forget_engine,
    load_engine,
)
from emma.tools.pack.probes import probes
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tokenizer_styles import STYLES, write_style


def few_probes(entries: list[str], added: list[str], *, seed: int = 0) -> list[str]:
    """Texts of all kinds, each hundredth of the 23,168 with code points."""
    everything = list(probes(entries, added, seed=seed))
    first = 2 * -(-len(entries) // 24) + len(entries)
    return [
        *everything[:first],
        *everything[first : first + 23_168 : 97],
        *everything[first + 23_168 : -3_800],
    ]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, planted: None) -> None:
    """Certificates of fewer texts, kept for this test alone."""
    monkeypatch.setattr(certificate, "probes", few_probes)


def styled(folder: Path, name: str) -> TokenizerFile:
    style = STYLES[name]
    write_style(folder, name)
    return TokenizerFile(Tokenizer(path=str(folder), begin_of_text=style.begin, end_of_text=style.end), 2000)


def certified(
    tokenizer: TokenizerFile, wanted: str = "fastest"
) -> tuple[str, dict[str, str], list[Certificate]]:
    with process_pool(1, preload=[]) as pool:
        return certified_engine(wanted, tokenizer, pool, 1)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", STYLES)
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = styled(tmp_path, name)
    own = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.path))
    ordinary = [token.content for token in STYLES[name].ordinary]
    texts = [
        "The river rises. La rivière naît.",
        "क川 \n\n\n\n  two   spaces\t😀",
        " ".join(ordinary),
        "".join(ordinary),
        *(f"a{token}b {token}\n{token}" for token in ordinary),
    ]
    found, passed_over, certificates = certified(tokenizer)
    assert all(each.fault is None for each in certificates if each.readable)
    assert found == ("tokenizers" if STYLES[name].unknown else "gigatoken"), passed_over
    for each in ENGINES:
        try:
            fast = load_engine(each, tokenizer)
        except UnreadableTokenizerError:
            assert STYLES[name].unknown
            continue
        encoded = fast.encode(pa.array(texts, pa.large_string()))
        for row, text in enumerate(texts):
            ids = encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]].tolist()
            assert ids == own.encode(text, add_special_tokens=False), (each, text)
        spelled = [f"x {token} {token}{token}" for token in STYLES[name].special]
        encoded = fast.encode(pa.array(spelled, pa.large_string()))
        assert not set(encoded.ids.tolist()) & set(tokenizer.control_ids.tolist()), each


def test_every_entry_and_every_code_point_is_a_text() -> None:
    texts = list(probes(["alpha", "βeta"], ["<think>", "</s>"]))
    together = "".join(texts)
    for ordinal in (*range(0, 0xD800, 7), *range(0xE000, 0x110000, 101), 0x10FFFF):
        assert chr(ordinal) in together
    assert len(set(together)) == 0x110000 - 0x800
    assert any("alphaβeta" in text for text in texts) and any("</s></s></s>" in text for text in texts)
    assert max(map(len, texts)) >= 10_000
    assert texts == list(probes(["alpha", "βeta"], ["<think>", "</s>"])), "the same each time"


class Wrong:
    """A fast engine that is wrong where a pattern matches."""

    pattern = ""

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self.inner = engine._Reference(tokenizer)

    def encode(self, values: pa.Array) -> Encoded:
        changed = [re.sub(self.pattern, "?", value) for value in values.to_pylist()]
        return self.inner.encode(pa.array(changed, pa.large_string()))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "pattern",
    ["x{33}", " {64}", "<think>", "<\\|im_end\\|>", "\U0001f600", "the"],
    ids=["run", "spaces", "added", "control", "code point", "entry"],
)
def test_a_wrong_engine_is_refused(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        engine._CLASSES, "fastokens", type("Wrong", (Wrong,), {"pattern": pattern.replace("x", "a")})
    )
    forget_engine("fastokens")
    found, passed_over, _ = certified(styled(tmp_path, "qwen"), "fastokens")
    forget_engine("fastokens")
    assert found == REFERENCE and "fastokens gives" in passed_over["fastokens"]


def test_the_message_says_where_ids_begin_to_differ(tmp_path: Path) -> None:
    tokenizer = styled(tmp_path, "qwen")
    texts = ["the same", "other"]
    right = joined([np.array(ids, np.uint32) for ids in ([300, 301], [302, 303, 304, 305])])
    for ids, said in (
        ([302, 303, 309, 305], "the ids [309, 305] from place 2 on, transformers [304, 305]"),
        ([302, 303], "the ids [] from place 2 on, transformers [304, 305]"),
    ):
        found = joined([np.array(each, np.uint32) for each in ([300, 301], ids)])
        assert certificate._difference(texts, right, found, tokenizer) == f"gives 'other' {said}"


@pytest.mark.usefixtures("few")
def test_a_file_whose_ids_the_library_would_change_is_refused(tmp_path: Path) -> None:
    tokenizer = styled(tmp_path, "qwen")
    value = json.loads(tokenizer.path.read_text())
    value["added_tokens"][-1]["id"] += 7
    tokenizer.path.write_text(json.dumps(value))
    other = TokenizerFile(tokenizer.settings, 2000)
    with pytest.raises(
        UserError, match=r"cannot be packed: .* gives '</think>' the id 614, transformers the id 607"
    ):
        certified(other)


@pytest.mark.usefixtures("few")
def test_a_certificate_is_made_once_and_says_its_time_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = styled(tmp_path, "llama3")
    with process_pool(1, preload=[]) as pool:
        first = certify(["tokenizers", "gigatoken"], tokenizer, pool, 1)
        assert re.search(r"with gigatoken: the ids of transformers \(608 entries, [\d,]+ texts, .* MB in .* s\)",
                         capsys.readouterr().err)  # fmt: skip
        monkeypatch.setattr(certificate, "_compare", None)
        assert certify(["tokenizers", "gigatoken"], tokenizer, pool, 1) == first
        # Another version, other boundaries, a damaged file: made anew, which cannot be here.
        with monkeypatch.context() as patch:
            patch.setattr(certificate, "package_versions", lambda names: {"tokenizers": "0"})
            with pytest.raises(TypeError):
                certify(["tokenizers"], tokenizer, pool, 1)
        for path in (tmp_path / "cache" / "certificates").glob("tokenizers-*.json"):
            path.write_text("{}")
        with pytest.raises(TypeError):
            certify(["tokenizers"], tokenizer, pool, 1)


@pytest.mark.usefixtures("few")
def test_several_processes_compare_what_one_does(tmp_path: Path) -> None:
    tokenizer = styled(tmp_path, "llama2")
    parts = [certificate._compare(["tokenizers"], tokenizer, part, 3) for part in range(3)]
    whole = certificate._compare(["tokenizers"], tokenizer, 0, 1)
    assert sum(part.texts for part in parts) == whole.texts and sum(p.bytes for p in parts) == whole.bytes


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_certified_on_all_texts(name: str, tmp_path: Path) -> None:
    _, passed_over, certificates = certified(styled(tmp_path, name))
    assert all(each.fault is None for each in certificates if each.readable)
    assert STYLES[name].unknown or not passed_over


def test_a_certificate_is_for_texts_with_these_boundaries_between_them(tmp_path: Path) -> None:
    write_style(tmp_path, "llama3")
    style = STYLES["llama3"]
    settings = {"path": str(tmp_path), "end_of_text": style.end}
    with_begin = TokenizerFile(Tokenizer(**settings, begin_of_text=style.begin), 2000)
    without = TokenizerFile(Tokenizer(**settings), 2000)
    assert with_begin.control_ids.tolist() == without.control_ids.tolist()
    assert certificate._path("gigatoken", with_begin) != certificate._path("gigatoken", without)
    assert certificate._path(REFERENCE, with_begin) == certificate._path(REFERENCE, without)
