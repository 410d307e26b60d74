from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer as Reference

from emma.base.errors import UserError
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import engine
from emma.tools.pack.encoded import Encoded
from emma.tools.pack.encoder import Encoder, gate_sample
from emma.tools.pack.engine import ENGINES, choose_engine, forget_engine, load_engine
from emma.tools.pack.probes import probes
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tiny_text import BEGIN, END, SENTENCES
from tests.tokenizer_styles import STYLES, write_style

TEXTS = [
    *(sentence for sentences in SENTENCES.values() for sentence in sentences),
    "",
    "a\x00b\u200d\ud7ff é e\u0301 " + "x" * 2000 + " " * 300,
    f"The tokens {BEGIN} and {END} are named in this text. {END}{END}",
]


def texts(values: list[str]) -> pa.Array:
    return pa.array(values, pa.large_string())


@pytest.mark.parametrize("name", ENGINES)
def test_engines_give_the_references_ids_and_no_control_token(name: str, tokenizer: TokenizerFile) -> None:
    pytest.importorskip(name)
    encoded = load_engine(name, tokenizer).encode(texts(TEXTS))
    plain = json.loads((Path(tokenizer.settings.path) / "tokenizer.json").read_text())
    plain["added_tokens"] = []
    reference = Reference.from_str(json.dumps(plain))
    expected = [reference.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert encoded.ids.tolist() == [id_ for ids in expected for id_ in ids]
    assert encoded.lengths.tolist() == [len(ids) for ids in expected]
    assert encoded.ids.dtype == np.uint32
    assert not np.isin(encoded.ids, tokenizer.control_ids).any()
    # A slice of a column whose buffers begin elsewhere.
    part = load_engine(name, tokenizer).encode(texts(TEXTS)[5:9])
    assert part.ids.tolist() == [id_ for ids in expected[5:9] for id_ in ids]


@pytest.mark.parametrize("style", STYLES)
def test_documents_encoded_together_are_encoded_as_alone(style: str, tmp_path: Path) -> None:
    pytest.importorskip("gigatoken")
    write_style(tmp_path, style)
    settings = Tokenizer(path=str(tmp_path), begin_of_text=STYLES[style].begin, end_of_text=STYLES[style].end)
    file = TokenizerFile(settings, 2000)
    try:
        fast = engine._Gigatoken(file)
    except RuntimeError:
        pytest.skip("not read by gigatoken")
    edges = [
        "",
        "",
        " ",
        "  x  ",
        "\n",
        "\n\n a \n",
        "'",
        "'s",
        f"x{STYLES[style].end}",
        "é\u0301",
        "\u0301x",
        "▁",
        "a\x00",
    ]
    few = [*list(probes(list(file.ids), file.ordinary))[::29], *edges, *reversed(edges), *edges]
    bounded = fast.encode_bounded(texts(few))
    assert bounded is not None
    alone = [fast._tokenizer.backend.encode(text.encode()).tolist() for text in few]
    found = bounded.some(np.arange(len(few)))
    starts, stops = found.offsets[:-1], found.offsets[1:]
    assert [found.ids[a:b].tolist() for a, b in zip(starts, stops, strict=True)] == alone
    assert (bounded.ids[bounded.ends - 1] == file.end_of_text_id).all()
    if bounded.begins:
        assert (bounded.ids[bounded.starts - 1] == file.begin_of_text_id).all()
    none = fast.encode_bounded(texts([]))
    assert none is not None
    assert (len(none.ids), none.lengths.tolist()) == (0, [])


@pytest.mark.parametrize("style", ["llama2", "gemma"])
def test_documents_are_encoded_alone_where_the_first_text_is_treated_apart(
    style: str, tmp_path: Path
) -> None:
    pytest.importorskip("gigatoken")
    write_style(tmp_path, style)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    path.write_text(json.dumps({**value, "normalizer": None, "pre_tokenizer": metaspace}))
    settings = Tokenizer(path=str(tmp_path), begin_of_text=STYLES[style].begin, end_of_text=STYLES[style].end)
    file = TokenizerFile(settings, 2000)
    few = texts(["The river", "rises", "", "in the mountains"])
    right = load_engine("tokenizers", file).encode(few)
    assert load_engine("gigatoken", file).encode_bounded(few) is None
    assert load_engine("gigatoken", file).encode(few).ids.tolist() == right.ids.tolist()


def test_an_engine_needs_no_boundaries_to_encode(tokenizer_folder: Path, tmp_path: Path) -> None:
    """To count tokens, the tokenizer's control tokens need neither exist nor fit the model."""
    pytest.importorskip("gigatoken")
    value = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    expected = load_engine(
        "tokenizers", TokenizerFile(Tokenizer(path=str(tokenizer_folder), end_of_text=END), 512)
    )
    small = TokenizerFile(Tokenizer(path=str(tokenizer_folder), end_of_text=END), 400)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**value, "added_tokens": []}))
    none = TokenizerFile(Tokenizer(path=str(tmp_path), end_of_text="<|nowhere|>"), 512)
    for file in (small, none):
        assert load_engine("gigatoken", file).encode(texts(TEXTS[:5])).ids.tolist() == (
            expected.encode(texts(TEXTS[:5])).ids.tolist()
        )


@pytest.mark.parametrize("key", ["lstrip", "rstrip"])
def test_a_boundary_that_takes_white_space_is_not_put_between_texts(
    key: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gigatoken")
    value = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    for token in value["added_tokens"]:
        token[key] = token["content"] == END
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    file = TokenizerFile(Tokenizer(path=str(tmp_path), end_of_text=END), 512)
    assert file.boundary_names is None
    spaced = texts(["the sea  ", "  the stars", " "])
    right = load_engine("tokenizers", file).encode(spaced)
    encoder = Encoder(file, "gigatoken")
    bounded = encoder.encode_bounded(spaced, texts(["eng_Latn"] * 3))
    assert encoder.trusted == {"eng_Latn"}
    assert bounded.some(np.arange(3)).ids.tolist() == right.ids.tolist()
    assert bounded.lengths.tolist() == right.lengths.tolist()


@pytest.mark.parametrize("name", ["gigatoken", "fastokens"])
def test_an_engine_clears_its_cache_regularly(
    name: str, tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    fast = engine._CLASSES[name](tokenizer)
    assert isinstance(fast, engine._Renewed)
    first, expected = fast._tokenizer, fast.encode(texts(TEXTS)).ids.tolist()
    assert fast._tokenizer is first
    monkeypatch.setattr(engine, "RENEW_BYTES", 100)
    assert fast.encode(texts(TEXTS)).ids.tolist() == expected
    assert fast._tokenizer is not first


def test_text_that_spells_a_control_token_reads_back_as_text(tokenizer: TokenizerFile) -> None:
    whole = Reference.from_file(str(tokenizer.path))
    text = f"before {END} after"
    assert tokenizer.end_of_text_id in whole.encode(text).ids, "the plain tokenizer makes it a control token"
    encoder = Encoder(tokenizer, choose_engine("fastest"))
    ids = encoder.encode(texts([text]), texts(["eng_Latn"])).ids
    assert tokenizer.end_of_text_id not in ids
    assert whole.decode(ids.tolist(), skip_special_tokens=False) == text


class Broken:
    """A fast engine that is wrong about texts with a `é`."""

    wrong = "é"

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self.inner = engine._Reference(tokenizer)

    def encode(self, values: pa.Array) -> Encoded:
        changed = pa.array(
            [value.replace(self.wrong, "e") for value in values.to_pylist()], pa.large_string()
        )
        return self.inner.encode(changed)


def test_a_language_that_differs_falls_back_to_the_reference(
    tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._CLASSES, "fastokens", Broken)
    forget_engine("fastokens")
    languages = ["fra_Latn", "eng_Latn", "fra_Latn", "swh_Latn", "eng_Latn"]
    values = ["a écrit", "wrote", "étoiles", "nyota", "stars"]
    encoder = Encoder(tokenizer, "fastokens")
    encoded = encoder.encode(texts(values), texts(languages))
    forget_engine("fastokens")
    expected = load_engine("tokenizers", tokenizer).encode(texts(values))
    assert encoded.ids.tolist() == expected.ids.tolist()
    assert encoded.offsets.tolist() == expected.offsets.tolist()
    assert (encoder.refused, encoder.trusted) == ({"fra_Latn"}, {"eng_Latn", "swh_Latn"})


@pytest.mark.parametrize("at_the_gate", [True, False])
def test_an_engine_that_fails_on_a_text_is_refused_its_language(
    tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch, at_the_gate: bool
) -> None:
    class Failing(Broken):
        def encode(self, values: pa.Array) -> Encoded:
            if any("世" in value for value in values.to_pylist()):
                raise engine.EngineError("boom")
            return self.inner.encode(values)

    monkeypatch.setitem(engine._CLASSES, "fastokens", Failing)
    forget_engine("fastokens")
    encoder = Encoder(tokenizer, "fastokens", gate_documents=1)
    values = ["世界" if at_the_gate else "川", "world", "世", "star"]
    encoded = encoder.encode(texts(values), texts(["jpn_Jpan", "eng_Latn"] * 2))
    forget_engine("fastokens")
    assert (encoder.refused, encoder.trusted) == ({"jpn_Jpan"}, {"eng_Latn"})
    assert encoded.ids.tolist() == load_engine("tokenizers", tokenizer).encode(texts(values)).ids.tolist()


@pytest.mark.parametrize("kind", [ValueError, type("PanicException", (BaseException,), {})])
def test_what_an_engine_raises_is_an_engine_error(kind: type[BaseException]) -> None:
    with pytest.raises(engine.EngineError, match="boom"), engine._engine_errors():
        raise kind("boom")
    with pytest.raises(KeyboardInterrupt), engine._engine_errors():
        raise KeyboardInterrupt


def test_the_gate_compares_a_limited_number_of_documents_and_bytes() -> None:
    sample = gate_sample(texts(["x" * 10_000] * 5), 3)
    assert len(sample) == 1
    assert len(gate_sample(texts(["x"] * 50), 3)) == 3
    assert len(gate_sample(texts(["x" * 100_000]), 3)) == 1


def test_text_encoded_as_a_control_token_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A tokenizer whose ordinary merges make a control token: no document passes."""
    value = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    id_ = value["model"]["vocab"]["a"]
    value["added_tokens"].append({**value["added_tokens"][0], "id": id_, "content": "a"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    file = TokenizerFile(Tokenizer(path=str(tmp_path), end_of_text=END), 512)
    with pytest.raises(UserError, match=r"was encoded as the control token \d+; it starts 'banana'"):
        Encoder(file, "tokenizers").encode(texts(["xyz", "banana"]), texts(["eng_Latn"] * 2))


@pytest.mark.parametrize(
    ("settings", "vocab_size", "message"),
    [
        ({"path": "nowhere", "end_of_text": END}, 512, "no such tokenizer"),
        (
            {"end_of_text": "<|eot|>"},
            512,
            r"end_of_text: .* has no token '<\|eot\|>'; it has <\|begin_of_text\|>",
        ),
        ({"end_of_text": END, "begin_of_text": END}, 512, "both opens and closes documents"),
        ({"end_of_text": END}, 500, r"largest id is 511, but model\.vocab_size is 500"),
        ({"end_of_text": END, "sha256": "0" * 64}, 512, "this is another tokenizer"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    tokenizer_folder: Path, settings: dict[str, str], vocab_size: int, message: str
) -> None:
    file = TokenizerFile(Tokenizer(**{"path": str(tokenizer_folder), **settings}), vocab_size)
    with pytest.raises(UserError, match=message):
        file.check()


def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a Hugging Face tokenizer\.json"):
        TokenizerFile(Tokenizer(path=str(tmp_path), end_of_text=END), 512).check()


def test_engine_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("tokenizers") == "tokenizers"
    with pytest.raises(UserError, match="no engine 'x'"):
        choose_engine("x")
    monkeypatch.setattr(
        engine.importlib.util, "find_spec", lambda name: None if name != "tokenizers" else True
    )
    assert choose_engine("fastest") == "tokenizers"
    with pytest.raises(UserError, match="gigatoken is not installed"):
        choose_engine("gigatoken")
