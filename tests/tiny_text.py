"""A few sentences in several languages and scripts, and a byte-level BPE tokenizer that trains on them instantly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["BEGIN", "END", "SENTENCES", "documents", "pairs", "train_tokenizer"]

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

# The same ten sentences in each language, so that they align into pairs.
SENTENCES: dict[str, tuple[str, ...]] = {
    "eng_Latn": (
        "The river rises in the mountains and flows to the sea.",
        "Her grandmother baked bread every Saturday morning.",
        "How many people live in this village?",
        "The library opens at nine o'clock and closes at six.",
        "Rain fell for three days without a pause.",
        "They planted 120 young trees along the road.",
        "Nobody knew why the old clock had stopped.",
        "The teacher wrote the answer on the blackboard.",
        "Fresh fish is sold at the harbour in the evening.",
        "We walked home under a sky full of stars.",
    ),
    "fra_Latn": (
        "La rivière naît dans les montagnes et coule vers la mer.",
        "Sa grand-mère faisait du pain chaque samedi matin.",
        "Combien de personnes vivent dans ce village ?",
        "La bibliothèque ouvre à neuf heures et ferme à six heures.",
        "La pluie est tombée pendant trois jours sans pause.",
        "Ils ont planté 120 jeunes arbres le long de la route.",
        "Personne ne savait pourquoi la vieille horloge s'était arrêtée.",
        "Le professeur a écrit la réponse au tableau.",
        "Le poisson frais se vend au port le soir.",
        "Nous sommes rentrés à pied sous un ciel plein d'étoiles.",
    ),
    "swh_Latn": (
        "Mto huanzia milimani na kutiririka hadi baharini.",
        "Bibi yake alioka mkate kila Jumamosi asubuhi.",
        "Watu wangapi wanaishi katika kijiji hiki?",
        "Maktaba hufunguliwa saa tatu na kufungwa saa kumi na mbili.",
        "Mvua ilinyesha kwa siku tatu bila kupumzika.",
        "Walipanda miti michanga 120 kando ya barabara.",
        "Hakuna aliyejua kwa nini saa ya zamani ilisimama.",
        "Mwalimu aliandika jibu ubaoni.",
        "Samaki wabichi huuzwa bandarini jioni.",
        "Tulitembea nyumbani chini ya anga lililojaa nyota.",
    ),
    "rus_Cyrl": (
        "Река берёт начало в горах и течёт к морю.",
        "Её бабушка пекла хлеб каждое субботнее утро.",
        "Сколько людей живёт в этой деревне?",
        "Библиотека открывается в девять и закрывается в шесть.",
        "Дождь шёл три дня без перерыва.",
        "Они посадили 120 молодых деревьев вдоль дороги.",
        "Никто не знал, почему старые часы остановились.",
        "Учитель написал ответ на доске.",
        "Свежую рыбу продают вечером в порту.",
        "Мы шли домой под небом, полным звёзд.",
    ),
    "hin_Deva": (
        "नदी पहाड़ों से निकलती है और समुद्र की ओर बहती है।",
        "उसकी दादी हर शनिवार की सुबह रोटी बनाती थीं।",
        "इस गाँव में कितने लोग रहते हैं?",
        "पुस्तकालय नौ बजे खुलता है और छह बजे बंद होता है।",
        "तीन दिन तक बिना रुके बारिश होती रही।",
        "उन्होंने सड़क के किनारे 120 छोटे पेड़ लगाए।",
        "किसी को नहीं पता था कि पुरानी घड़ी क्यों रुक गई।",
        "शिक्षक ने उत्तर ब्लैकबोर्ड पर लिखा।",
        "शाम को बंदरगाह पर ताज़ी मछली बिकती है।",
        "हम तारों भरे आकाश के नीचे पैदल घर गए।",
    ),
    "jpn_Jpan": (
        "川は山から始まり、海へ流れます。",
        "彼女の祖母は毎週土曜日の朝にパンを焼きました。",
        "この村には何人住んでいますか。",
        "図書館は九時に開き、六時に閉まります。",
        "雨は三日間休まず降りました。",
        "彼らは道に沿って120本の若い木を植えました。",
        "古い時計がなぜ止まったのか誰も知りませんでした。",
        "先生は黒板に答えを書きました。",
        "夕方になると港で新鮮な魚が売られます。",
        "私たちは星でいっぱいの空の下を歩いて帰りました。",
    ),
}


def documents(language: str, count: int, seed: int = 0) -> list[str]:
    """Documents of one to eight sentences in random order, numbered so that no two are equal."""
    rng = random.Random(f"{language}-{seed}")
    sentences = SENTENCES[language]
    return [f"{number}. " + " ".join(rng.choices(sentences, k=rng.randint(1, 8))) for number in range(count)]


def pairs(source: str, target: str, count: int) -> list[tuple[str, str]]:
    """Aligned sentence pairs, numbered so that no two are equal."""
    aligned = list(zip(SENTENCES[source], SENTENCES[target], strict=True))
    return [
        (f"{number}. {aligned[number % 10][0]}", f"{number}. {aligned[number % 10][1]}")
        for number in range(count)
    ]


def train_tokenizer(folder: Path, vocab_size: int = 512, extra_control: Sequence[str] = ()) -> Path:
    """Trains a byte-level BPE and writes `folder/tokenizer.json`; `vocab_size` (at least 259) includes control tokens."""
    control = [BEGIN, END, *extra_control]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(control),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for lines in SENTENCES.values() for line in lines), trainer)
    tokenizer.add_special_tokens(control)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
