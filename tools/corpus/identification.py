"""Language identification, which checks the labels of documents."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Protocol

from emma.base.errors import UserError
from emma.base.extras import need
from emma.base.files import sha256_file
from emma.recipes.schema.corpus import Identification
from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError

__all__ = ["Identifier", "description", "identifier"]

_CHARACTERS = 2000
"""How many characters of a text the model sees."""


class Backend(Protocol):
    """A model: the labels it knows, and its prediction for a text."""

    labels: list[str]

    def predict(self, text: str) -> tuple[str, float]:
        """Most likely label and its probability."""


class FastText:
    """A model in fastText's format, whose labels are language codes with the prefix `__label__`.

    Args:
        path: its file.
        option: what names the file, for messages.

    Raises:
        UserError: the package or the file is missing, or it is no such model.
    """

    def __init__(self, path: str, option: str = "data.corpus.identification.model") -> None:
        need("corpus", f"{option}: a fastText model", "fasttext")
        import fasttext

        if not Path(path).is_file():
            raise UserError(f"{option}: {path} does not exist; fetch the model or fix the path")
        try:
            self.model = fasttext.load_model(path)
        except ValueError as error:
            raise UserError(f"{path}: not a fastText model ({error})") from None
        # fasttext-predict has no list of labels, but predicts all of them.
        self.labels = [label.removeprefix("__label__") for label in self.model.predict(".", k=-1)[0]]

    def predict(self, text: str) -> tuple[str, float]:
        """Most likely label and its probability; no label for a text of which the model knows nothing."""
        labels, probabilities = self.model.predict(text.replace("\n", " "), k=1)
        if not labels:
            return "", 0.0
        return labels[0].removeprefix("__label__"), min(1.0, float(probabilities[0]))


class Py3LangId:
    """py3langid's built-in model."""

    def __init__(self) -> None:
        need("corpus", "identification.backend: py3langid", "py3langid")
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self.model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self.labels = list(self.model.labels)

    def predict(self, text: str) -> tuple[str, float]:
        """Most likely label and its probability."""
        label, probability = self.model.classify(text)
        return str(label), float(probability)


class Identifier:
    """Compares labels with a model's predictions.

    The model knows a language if one of its labels means that language or one of the same macro-language: a
    model that has both `nb` and `no` cannot be expected to tell them apart.
    """

    def __init__(self, settings: Identification, backend: Backend) -> None:
        self.settings, self.backend = settings, backend
        self.known = {group for label in backend.labels if (group := self._group(label)) is not None}

    @staticmethod
    @functools.cache
    def _group(label: str) -> str | None:
        """Macro-language of a label, or its language if it belongs to none; None for an unknown label."""
        import iso639

        try:
            language = LanguageResolver().resolve(label).language
        except UnknownLanguageError:
            return None
        try:
            return iso639.Language.from_part3(language).macrolanguage or language
        except iso639.LanguageNotFoundError:
            return language

    def mismatch(self, text: str, language: str) -> str | None:
        """The prediction, if it contradicts the label `language` (`xxx_Ssss`); None if the label stands."""
        group = self._group(language)
        if len(text) < self.settings.min_characters or group not in self.known:
            return None
        label, probability = self.backend.predict(text[:_CHARACTERS])
        said = self._group(label)
        if said is None or said == group or probability < self.settings.min_confidence:
            return None
        return f"{label} ({probability:.2f})"


def used(settings: Identification) -> Identification:
    """The settings with the backend that this machine has the model for."""
    if settings.fallback is not None and not Path(str(settings.model)).is_file():
        return settings.model_copy(update={"backend": settings.fallback, "model": None, "fallback": None})
    return settings


@functools.lru_cache(maxsize=1)
def description(settings: Identification) -> dict[str, str]:
    """What identifies languages, for the manifest: `backend` and, of a model's file, its path and SHA-256."""
    chosen = used(settings)
    if chosen.model is None:
        return {"backend": chosen.backend}
    return {"backend": chosen.backend, "model": chosen.model, "sha256": sha256_file(chosen.model)}


@functools.lru_cache(maxsize=1)
def identifier(settings: Identification) -> Identifier | None:
    """The recipe's identifier, loaded once per process; None for the backend `none`.

    Raises:
        UserError: its package or model is missing.
    """
    settings = used(settings)
    if settings.backend == "none":
        return None
    if settings.backend == "fasttext":
        return Identifier(settings, FastText(str(settings.model)))
    return Identifier(settings, Py3LangId())
