from __future__ import annotations

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.measures import metric
from emma.tools.evaluation.quality.seen import UNSEEN, encoder_of, listed_encoder, place_of, quality_table


@pytest.mark.parametrize(
    ("model", "code", "expected"),
    [
        ("xlm-roberta-large", "swh_Latn", True),
        ("facebook/xlm-roberta-xl", "swh_Latn", True),
        ("FacebookAI/xlm-roberta-large", "yor_Latn", False),
        ("google/mt5-xl", "yor_Latn", True),
        ("Davlan/afro-xlmr-large", "yor_Latn", True),
        ("Davlan/afro-xlmr-large-76L", "fon_Latn", True),
        ("Davlan/afro-xlmr-large", "fon_Latn", False),
        # The encoder that it was trained further from has seen these.
        ("Davlan/afro-xlmr-large-76L", "deu_Latn", True),
        # Other spellings of one code, and macro-languages.
        ("xlm-roberta-large", "zho_Hans", True),
        ("xlm-roberta-large", "cmn_Hant", True),
        ("xlm-roberta-large", "jpn_Japn", True),
        ("xlm-roberta-large", "kor_Kore", True),
        ("xlm-roberta-large", "pes_Arab", True),
        ("xlm-roberta-large", "khk_Cyrl", True),
        # A language that it knows, in a script that it does not; one whose romanised text it was given.
        ("xlm-roberta-large", "amh_Latn", False),
        ("xlm-roberta-large", "hin_Latn", True),
        ("xlm-roberta-large", "srp_Latn", False),
        # Relatives are not the language.
        ("xlm-roberta-large", "prs_Arab", False),
        ("xlm-roberta-large", "arz_Arab", False),
        # An encoder that nobody listed has seen nothing that is known.
        ("some/encoder", "eng_Latn", False),
        ("xlm-roberta-large", "xxx_Latn", False),
    ],
)
def test_what_an_encoder_has_seen(model: str, code: str, expected: bool) -> None:
    assert encoder_of(model).has_seen(code) is expected


def test_every_listed_code_is_a_language_and_the_lists_have_the_sizes_of_their_sources() -> None:
    own = {
        name: len({place_of(code) for code in entry["languages"].split()})
        for name, entry in quality_table()["encoders"].items()
    }
    # 93 on the card of XLM-R, the romanised five, the second script of Chinese, and fil beside tl; 100
    # of mT5's, whose card counts `und` too.
    assert own["xlm-r"] == 93 + 5 + 2 and own["afro-xlmr"] == 17 + 3 and own["afro-xlmr-76L"] >= 74
    assert own["mt5"] == 100 + 2


def test_every_metric_has_a_name_of_its_own_where_its_encoder_is_blind() -> None:
    for key in quality_table()["metrics"]:
        assert metric(key).is_score and metric(key + UNSEEN).kind == "unseen"
        assert metric(key).better == metric(key + UNSEEN).better


def test_a_list_of_the_user() -> None:
    mine = listed_encoder("org/Mine", ["deu_Latn", "sw"], "mine.txt")
    assert mine.name == "mine" and mine.has_seen("swh_Latn") and not mine.has_seen("eng_Latn")
    with pytest.raises(UserError, match=r"mine\.txt: `klingonese` names no language"):
        listed_encoder("mine", ["klingonese"], "mine.txt")
