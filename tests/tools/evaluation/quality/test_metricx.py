from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.tools.evaluation.benchmarks.records import read_samples, read_unit, unit_file
from emma.tools.evaluation.quality.command import Request, plan, run
from emma.tools.evaluation.quality.metricx import MetricX
from emma.tools.evaluation.quality.texts import Translation
from emma.tools.evaluation.results import read_results
from tests.tools.evaluation.quality.saved_outputs import MODEL, write_evaluation
from tests.tools.evaluation.tiny_model import TEXTS

ROWS = [
    Translation(TEXTS["eng_Latn"], TEXTS["spa_Latn"], TEXTS["spa_Latn"]),
    Translation("All human beings.", "Todos", "Todos los seres humanos."),
    Translation(TEXTS["eng_Latn"] * 3, TEXTS["rus_Cyrl"] * 2, TEXTS["spa_Latn"]),
]
VOCABULARY = 250112


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mT5 of MetricX's schema with random weights, and a sentencepiece tokenizer with mT5's special tokens."""
    import sentencepiece
    from safetensors.torch import save_file
    from transformers import MT5Config, MT5Model

    folder = tmp_path_factory.mktemp("metricx") / "model"
    torch.manual_seed(3)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    config = MT5Config(vocab_size=VOCABULARY, **sizes)
    network = MT5Model(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5)
    # As released: config.json says that the head is its own (transformers 5 no longer writes that), and it is.
    config.save_pretrained(folder)
    stated = {
        **read_json(folder / "config.json"),
        "tie_word_embeddings": False,
        "architectures": ["MT5ForRegression"],
    }
    write_json(folder / "config.json", stated)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if "embed_tokens" not in name}
    tensors["lm_head.weight"] = torch.randn(VOCABULARY, 8)
    tensors["lm_head.weight"][250089] = torch.linspace(-4, 6, 8)
    save_file(tensors, folder / "model.safetensors")
    text = folder / "text.txt"
    text.write_text("\n".join(TEXTS.values()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    return folder


def by_hand(folder: Path, text: str) -> float:
    """What `MT5ForRegression` of the authors computes for one input: encoder, one decoder step, one logit, clipped."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, MT5Config, MT5Model

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    network = MT5Model(MT5Config.from_pretrained(folder)).eval()
    network.load_state_dict(tensors, strict=False)
    ids = torch.tensor([tokenizer(text)["input_ids"][:-1]])
    with torch.inference_mode():
        states = network.encoder(ids).last_hidden_state
        step = network.decoder(torch.tensor([[0]]), encoder_hidden_states=states).last_hidden_state[0, 0]
        return min(25.0, max(0.0, float(step @ tensors["lm_head.weight"][250089])))


def test_scores_are_those_of_the_authors_class(model: Path) -> None:
    texts = [f"source: {row.source} candidate: {row.output} reference: {row.reference}" for row in ROWS]
    expected = [by_hand(model, text) for text in texts]
    assert any(0 < value < 25 for value in expected)
    for batch in (1, 2, 16):
        assert MetricX("metricx", model, batch=batch).score(ROWS) == pytest.approx(expected, abs=1e-4)
    without = [by_hand(model, f"source: {row.source} candidate: {row.output}") for row in ROWS]
    assert MetricX("metricx_qe", model).score(ROWS) == pytest.approx(without, abs=1e-4)
    older = [by_hand(model, f"candidate: {row.output} reference: {row.reference}") for row in ROWS]
    assert MetricX("metricx23", model).score(ROWS) == pytest.approx(older, abs=1e-4)


def test_files_of_torch_are_read_without_running_them(model: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file

    shutil.copytree(model, tmp_path / "released")
    tensors = load_file(tmp_path / "released" / "model.safetensors")
    (tmp_path / "released" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "released" / "pytorch_model.bin")
    assert MetricX("metricx", tmp_path / "released").score(ROWS) == MetricX("metricx", model).score(ROWS)
    # A checkpoint that lacks a tensor would score with random values.
    torch.save(
        {key: value for key, value in tensors.items() if "lm_head" not in key},
        tmp_path / "released" / "pytorch_model.bin",
    )
    with pytest.raises(UserError, match=r"lacks 1 of the model's tensors; the first is lm_head\.weight"):
        MetricX("metricx", tmp_path / "released").score(ROWS)


def test_what_is_no_metricx_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no config\.json"):
        MetricX("metricx", tmp_path)
    write_json(tmp_path / "config.json", {**read_json(model / "config.json"), "vocab_size": 32000})
    with pytest.raises(
        UserError, match=r"model_type mt5 with 32000 tokens; MetricX is an mt5 with more than 250089"
    ):
        MetricX("metricx", tmp_path)
    write_json(tmp_path / "config.json", read_json(model / "config.json"))
    with pytest.raises(UserError, match=r"holds no tokenizer .* --encoder metricx=FOLDER"):
        MetricX("metricx", tmp_path)


def test_scores_join_the_units_and_blind_languages_stay_apart(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TEXTS["eng_Latn"]
    folder = write_evaluation(
        tmp_path / "evaluation",
        {
            ("flores200_eng_x", "eng_Latn-spa_Latn"): [
                (source, TEXTS["spa_Latn"], "Todos"),
                (source, "", "Todos"),
            ],
            ("flores200_eng_x", "eng_Latn-fon_Latn"): [
                (source, "Gbɛtɔ lɛ", "Gbɛtɔ lɛ bǐ"),
                (source, "x", "y"),
            ],
            ("flores200_x_eng", "fon_Latn-eng_Latn"): [("Gbɛtɔ lɛ", "All human beings", source)] * 2,
            ("polywrite", "spa_Latn"): [("", TEXTS["spa_Latn"], "")] * 2,
        },
    )
    request = Request(metrics={"metricx": model})
    run(plan(folder, request))
    rows = {(row.benchmark, row.language, row.metric): row for row in read_results(folder)}
    told = {key: row for key, row in rows.items() if key[2].startswith("metricx")}
    assert {key[1:] for key in told} == {
        ("eng_Latn-spa_Latn", "metricx"),
        ("eng_Latn-fon_Latn", "metricx_unseen"),
        ("fon_Latn-eng_Latn", "metricx_unseen"),
    }
    # Silence gets the most errors, whatever the model would say.
    spanish = told["flores200_eng_x", "eng_Latn-spa_Latn", "metricx"]
    path = unit_file(folder, MODEL, "flores200_eng_x", "eng_Latn-spa_Latn")
    items = [sample["scores"]["metricx"] for sample in read_samples(path)]
    expected = by_hand(model, f"source: {source} candidate: {TEXTS['spa_Latn']} reference: Todos")
    assert items == [pytest.approx(expected, abs=1e-4), 25.0]
    assert spanish.value == pytest.approx((expected + 25) / 2, abs=1e-4) and spanish.n == 2 and spanish.error
    assert "encoder:mt5" in spanish.signature and spanish.signature.endswith("seen:yes")
    assert told["flores200_x_eng", "fon_Latn-eng_Latn", "metricx_unseen"].signature.endswith("seen:no")
    # What was there stays.
    assert rows["polywrite", "spa_Latn", "empty_rate"].value == 0
    unit = read_unit(path)
    assert unit is not None and unit.key == "key"

    # A second time, nothing is loaded or written; with another list, the language moves to the valid ones.
    before = {file: file.stat().st_mtime_ns for file in folder.glob("benchmarks/**/*.json")}
    monkeypatch.setattr(MetricX, "_load", lambda self: pytest.fail("loaded again"))
    run(plan(folder, request))
    assert {file: file.stat().st_mtime_ns for file in folder.glob("benchmarks/**/*.json")} == before
    monkeypatch.undo()
    seen = tmp_path / "seen.txt"
    seen.write_text("eng_Latn\nfon_Latn\nspa_Latn\n")
    run(plan(folder, Request(metrics={"metricx": model}, seen={"metricx": seen})))
    again = {(row.language, row.metric) for row in read_results(folder) if row.metric.startswith("metricx")}
    assert again == {(key[1], "metricx") for key in told}
    scores = [
        sample["scores"]
        for sample in read_samples(unit_file(folder, MODEL, "flores200_eng_x", "eng_Latn-fon_Latn"))
    ]
    assert all("metricx_unseen" not in one and "metricx" in one for one in scores)


def test_requests_that_cannot_be(model: Path, tmp_path: Path) -> None:
    folder = write_evaluation(
        tmp_path / "evaluation", {("flores200_eng_x", "eng_Latn-spa_Latn"): [("", "Todos", "Todos")]}
    )
    with pytest.raises(UserError, match="nothing to do: give --metric NAME=FOLDER or --glotlid FILE"):
        plan(folder, Request())
    with pytest.raises(UserError, match=r"--metric blurt=…: unknown metric; known are comet, xcomet"):
        plan(folder, Request(metrics={"blurt": model}))
    with pytest.raises(UserError, match=r"--encoder comet=…: without --metric comet=FOLDER"):
        plan(folder, Request(metrics={"metricx": model}, encoders={"comet": model}))
    with pytest.raises(UserError, match=r"no models\.json; run `emma evaluate run` first"):
        plan(tmp_path, Request(metrics={"metricx": model}))
    with pytest.raises(UserError, match="among those asked for"):
        plan(folder, Request(metrics={"metricx": model}, languages=frozenset(["deu_Latn"])))
    # Saved before sources were.
    with pytest.raises(
        UserError, match=r"item 0 has no source; .* remove the file, and run the benchmark again"
    ):
        run(plan(folder, Request(metrics={"metricx": model})))


def test_a_head_that_is_tied_is_no_head_of_metricx(model: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {**read_json(model / "config.json"), "tie_word_embeddings": True})
    with pytest.raises(UserError, match="tie_word_embeddings is on; MetricX has a head of its own"):
        MetricX("metricx", tmp_path)
