"""Documents → token ids, each by the engine that its language may use."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emma.base.errors import UserError
from emma.tools.pack.encoded import Bounded, Encoded, agree, interleave
from emma.tools.pack.engine import REFERENCE, Engine, EngineError, EngineName, encode_or_none, load_engine
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = ["Encoder", "gate_sample", "sides_of"]


@dataclass
class Encoder:
    """A fast engine, with the reference for the languages that the gate refused it.

    Args:
        tokenizer: the tokenizer.
        name: the fast engine.
        refused: languages that only the reference may encode.
        trusted: languages that the gate admitted; others are gated on their first documents.
        gate_documents: documents per language that the gate compares.
        pairs: whether documents are of language pairs; the gate looks at each language of a pair by itself.
    """

    tokenizer: TokenizerFile
    name: EngineName
    refused: set[str] = field(default_factory=set)
    trusted: set[str] = field(default_factory=set)
    gate_documents: int = 32
    pairs: bool = False

    @property
    def _fast(self) -> Engine:
        return load_engine(self.name, self.tokenizer)

    @property
    def reference(self) -> Engine:
        """The reference."""
        return load_engine(REFERENCE, self.tokenizer)

    def encode(self, texts: pa.Array, languages: pa.Array) -> Encoded:
        """Encodes documents (large strings without nulls), each with the engine its language may use.

        Raises:
            UserError: a text was encoded as a control token.
        """
        if self.name == REFERENCE:
            return self.checked(self.reference.encode(texts), texts)
        self._gate_new(texts, languages)
        try:
            return self.checked(self._encode_by_language(texts, languages), texts)
        except EngineError:
            self._refuse_failing(texts, languages)
            return self.checked(self._encode_by_language(texts, languages), texts)

    def encode_bounded(self, texts: pa.Array, languages: pa.Array) -> Bounded:
        """As `encode`, with begin and end of text."""
        file = self.tokenizer
        if self.name != REFERENCE:
            self._gate_new(texts, languages)
            if not self.by_reference(languages).any():
                with suppress(EngineError):  # `encode` finds out where
                    if (bounded := self._fast.encode_bounded(texts)) is not None:
                        return bounded
        encoded = self.encode(texts, languages)
        return Bounded.of(
            encoded.ids,
            encoded.offsets[:-1],
            encoded.lengths,
            file.begin_of_text_id,
            file.end_of_text_id,
        )

    def _gate_new(self, texts: pa.Array, languages: pa.Array) -> None:
        """Gates languages that it does not know yet."""
        for language in pc.unique(languages).to_pylist():
            if not self._sides(language) <= self.refused | self.trusted:
                self.gate(texts.filter(pc.equal(languages, language)), language)

    def by_reference(self, languages: pa.Array) -> np.ndarray:
        """Which documents are of a language that only the reference may encode, as bools."""
        if self.name == REFERENCE:
            return np.ones(len(languages), bool)
        if not self.refused:
            return np.zeros(len(languages), bool)
        present = pc.unique(languages).to_pylist()
        refused = [language for language in present if self._sides(language) & self.refused]
        return pc.is_in(languages, pa.array(refused, pa.large_string())).to_numpy(zero_copy_only=False)

    def _sides(self, language: str) -> set[str]:
        """The languages that the gate knows a document's language by."""
        return sides_of(language, pairs=self.pairs)

    def _encode_by_language(self, texts: pa.Array, languages: pa.Array) -> Encoded:
        slow = self.by_reference(languages)
        if not slow.any():
            return self._fast.encode(texts)
        parts = {
            True: self.reference.encode(texts.filter(pa.array(slow))),
            False: self._fast.encode(texts.filter(pa.array(~slow))),
        }
        return interleave(parts, slow)

    def _refuse_failing(self, texts: pa.Array, languages: pa.Array) -> None:
        """Refuses languages whose texts the fast engine cannot encode, although the gate's sample passed."""
        for language in pc.unique(languages).to_pylist():
            try:
                self._fast.encode(texts.filter(pc.equal(languages, language)))
            except EngineError:
                self.trusted -= self._sides(language)
                self.refused |= self._sides(language)

    def gate(self, texts: pa.Array, language: str) -> bool:
        """Compares both engines on the first texts of a language; the language is trusted or refused from
        then on."""
        sample = gate_sample(texts, self.gate_documents)
        equal = agree(encode_or_none(self._fast, sample), self.reference.encode(sample))
        if equal:
            self.trusted |= self._sides(language) - self.refused
        else:
            self.refused |= self._sides(language)
            self.trusted -= self._sides(language)
        return equal

    def checked(self, encoded: Encoded, texts: pa.Array) -> Encoded:
        """The ids, if no text became a control token or one beyond the model's vocabulary."""
        ids, control = encoded.ids, self.tokenizer.control_ids
        if not len(ids):
            return encoded
        smallest, largest = int(ids.min()), int(ids.max())
        if largest >= self.tokenizer.vocab_size:
            raise UserError(
                f"{self.tokenizer.path}: gave id {largest}, but model.vocab_size is {self.tokenizer.vocab_size}"
            )
        # Most tokenizers have all control tokens at one end of the vocabulary: a comparison is enough.
        first, after = np.searchsorted(control, (smallest, largest + 1)).tolist()
        hits = np.isin(ids, control[first:after]) if after > first else np.zeros(0, bool)
        if hits.any():
            at = int(np.flatnonzero(hits)[0])
            document = int(np.searchsorted(encoded.offsets, at, side="right")) - 1
            text = texts[document].as_py()
            raise UserError(
                f"{self.tokenizer.path}: a text was encoded as the control token {int(ids[at])}; it starts "
                f"{text[:60]!r}. A control token must not be one that ordinary text is made of: name another "
                "document boundary, mark the token as not special in tokenizer.json, or remove it from the text"
            )
        return encoded


def sides_of(language: str, *, pairs: bool) -> set[str]:
    """The two languages of a pair (`eng_Latn-fra_Latn`), or the language itself."""
    return set(language.split("-")) if pairs else {language}


GATE_BYTES = 8 << 10
"""Most UTF-8 bytes per language that the gate compares."""


def gate_sample(texts: pa.Array, documents: int) -> pa.Array:
    """The first documents, at most `documents` and 8 KiB; a longer first document is cut."""
    sample = texts[:documents]
    sizes = np.cumsum(pc.binary_length(sample).to_numpy(zero_copy_only=False))
    count = int(np.searchsorted(sizes, GATE_BYTES, side="right"))
    if count == 0 and len(sample):
        beginning = sample[0].as_py().encode()[:GATE_BYTES].decode(errors="ignore")
        return pa.array([beginning], sample.type)
    # A copy: a slice would send its whole column to another process.
    return pa.concat_arrays([sample[:count]])
