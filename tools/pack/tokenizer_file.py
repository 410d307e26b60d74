"""A `tokenizer.json`: its control tokens, the tokens that bound documents, and the form that engines load.

Engines load the file with its control tokens *renamed*, not removed: Hugging Face numbers added tokens in the order
in which it finds them, so a file without some of them gives the others other ids. A renamed control token keeps its
id, and no text spells its name.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from emma.base.errors import UserError
from emma.base.garbage import no_garbage_collection
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack.split_rule import SplitRule, split_rule

__all__ = ["TokenizerFile", "tokenizer_of_process"]


# What makes an added token depend on the text around it, or take white space of it.
_TAKING_MORE = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class _Content:
    """The parts of the file that are used; the whole parsed file would take ten times the memory.

    Attributes:
        sha256: of the file.
        ids: all ids by token, added tokens included; None where another process has read the file.
        added: ids of all added tokens by content.
        hidden: names of control tokens by the names under which engines know them.
        control: ids of the control tokens, sorted.
        named: ids of the tokens that the recipe names, where the tokenizer has them.
        unknown: id of the token for what the vocabulary lacks, if it has one that is no document boundary.
        largest: largest id.
        rule: where text is provably cut.
        cutting: tokens that the recipe names under which engines cut text, and nothing else.
    """

    sha256: str
    ids: dict[str, int] | None
    added: dict[str, int]
    hidden: dict[str, str]
    control: np.ndarray
    named: dict[str, int]
    unknown: int | None
    largest: int
    rule: SplitRule | None
    cutting: frozenset[str]


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json` and the tokens that bound documents, checked against each other and the model.

    Args:
        settings: the recipe's `model.tokenizer`.
        vocab_size: token ids of the model's embedding, without padding.
    """

    settings: Tokenizer
    vocab_size: int

    def __reduce__(self) -> tuple[Any, ...]:
        # The content is not pickled: each process reads the file once.
        return tokenizer_of_process, (self.settings, self.vocab_size)

    @property
    def path(self) -> Path:
        """The file."""
        folder = Path(self.settings.path)
        return folder if folder.suffix == ".json" else folder / "tokenizer.json"

    @cached_property
    def _content(self) -> _Content:
        content, value = self._load()
        vars(self)["plain"] = orjson.dumps(value).decode()
        return content

    @no_garbage_collection()
    def _load(self) -> tuple[_Content, dict[str, Any]]:
        """The file's content, and `plain` parsed."""
        content, sha256 = self._read()
        try:
            value = orjson.loads(content)
            model, tokens = value["model"], value.get("added_tokens") or []
            ids = _vocabulary(model["vocab"])
            added = {token["content"]: token["id"] for token in tokens}
            special = {token["content"] for token in tokens if token.get("special")}
            largest = max([*ids.values(), *added.values()])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise UserError(f"{self.path}: not a Hugging Face tokenizer.json") from None
        if len(added) != len(tokens):
            raise UserError(f"{self.path}: two of its added tokens have the same text; correct the file")
        known = ids | added
        boundaries = (self.settings.end_of_text, self.settings.begin_of_text)
        named = {name: int(known[name]) for name in boundaries if name is not None and name in known}
        unknown = known.get(model.get("unk_token"), model.get("unk_id"))
        # What opens and closes documents is a control token, whatever the file says of it.
        control = {name: known[name] for name in sorted(special | set(named))}
        names = {name: _hidden(sha256, id_) for name, id_ in control.items()}
        _hide(value, names)
        value.update(post_processor=None, truncation=None, padding=None)
        apart = _treats_the_first_text_apart(value)
        cutting = {
            token["content"]
            for token in value["added_tokens"]
            if not apart and not any(map(token.get, _TAKING_MORE))
        }
        if unknown in named.values():
            unknown = None
        found = _Content(
            sha256=sha256,
            ids=known,
            added=added,
            hidden={hidden: name for name, hidden in names.items()},
            control=np.array(sorted(set(control.values()) - {unknown}), dtype=np.int64),
            named=named,
            unknown=unknown,
            largest=largest,
            rule=split_rule(value),
            cutting=frozenset(named.keys() & {name for name, hidden in names.items() if hidden in cutting}),
        )
        return found, value

    def _load_again(self) -> tuple[_Content, dict[str, Any]]:
        """What `_load` gives, of the file that is known already.

        Raises:
            UserError: it is another one now.
        """
        content, value = self._load()
        if content.sha256 != self.sha256:
            raise UserError(f"{self.path}: was changed while it was in use; run the command again")
        return content, value

    def _read(self) -> tuple[bytes, str]:
        try:
            content = self.path.read_bytes()
        except OSError:
            raise UserError(
                f"{self.path}: no such tokenizer; download the base model's tokenizer.json, or correct "
                "model.tokenizer.path"
            ) from None
        found = hashlib.sha256(content).hexdigest()
        if self.settings.sha256 is not None and found != self.settings.sha256:
            raise UserError(
                f"{self.path}: its SHA-256 is {found}, model.tokenizer.sha256 asks for "
                f"{self.settings.sha256}; this is another tokenizer"
            )
        return content, found

    @property
    def is_read(self) -> bool:
        """Whether this object has read the file, or adopted what another has."""
        return "_content" in vars(self)

    def forget_ids(self) -> None:
        """Frees `ids`, the bulk of what is kept of the file; whoever needs them reads it again."""
        vars(self)["_content"] = replace(self._content, ids=None)

    def read(self) -> object:
        """What the file holds, for `adopt`; without its many tokens, which few need.

        Raises:
            UserError: it is missing, no tokenizer, or not the one that the recipe asks for.
        """
        return replace(self._content, ids=None)

    def adopt(self, content: object) -> None:
        """Takes over what `read` gave in another process, where the same file was read."""
        vars(self)["_content"] = content

    @property
    def sha256(self) -> str:
        """SHA-256 of the file.

        Raises:
            UserError: it is missing, or not the one that the recipe asks for.
        """
        return self._content.sha256

    @property
    def control_ids(self) -> np.ndarray:
        """Ids of control tokens (the special added ones, and those that bound documents), sorted, int64; no text may
        encode to one."""
        return self._content.control

    @property
    def unknown_id(self) -> int | None:
        """Id of the token that text becomes where the vocabulary lacks it; None if there is none, or if it also bounds
        documents, which no text may."""
        return self._content.unknown

    @property
    def ids(self) -> dict[str, int]:
        """All ids by token, added tokens included."""
        if self._content.ids is None:
            vars(self)["_content"] = self._load_again()[0]
        return cast(dict[str, int], self._content.ids)

    @property
    def added(self) -> list[str]:
        """Contents of the added tokens, control tokens included, in the file's order."""
        return list(self._content.added)

    @property
    def ordinary(self) -> list[str]:
        """Contents of the added tokens that text may become."""
        control = set(self._content.hidden.values())
        return [token for token in self._content.added if token not in control]

    @property
    def split_rule(self) -> SplitRule | None:
        """Where the tokenizer provably cuts text that has no added token; None if that isn't known."""
        return self._content.rule

    def shown(self, ids: Mapping[str, int]) -> dict[str, int]:
        """An engine's ids by token, control tokens under their own names."""
        return {self._content.hidden.get(token, token): id_ for token, id_ in ids.items()}

    def _id_of(self, token: str, key: str) -> int:
        id_ = self._content.named.get(token)
        if id_ is None:
            near = [name for name in self._content.added if "text" in name or "s>" in name][:6]
            raise UserError(
                f"model.tokenizer.{key}: {self.path} has no token {token!r}"
                + (f"; it has {', '.join(near)}" if near else "")
            )
        return id_

    @property
    def end_of_text_id(self) -> int:
        """Id of the end of text, the token that closes every document.

        Raises:
            UserError: the tokenizer has no such token.
        """
        return self._id_of(self.settings.end_of_text, "end_of_text")

    @property
    def begin_of_text_id(self) -> int | None:
        """Id of the begin of text, the token that opens every document, if the recipe has one.

        Raises:
            UserError: the tokenizer has no such token.
        """
        token = self.settings.begin_of_text
        return None if token is None else self._id_of(token, "begin_of_text")

    @cached_property
    def boundary_names(self) -> tuple[str, ...] | None:
        """What engines know begin (if the recipe has one) and end of text by: between documents, these names become their
        ids and leave the text on both sides alone. None where that isn't so."""
        wanted = [self.settings.begin_of_text] if self.settings.begin_of_text is not None else []
        wanted.append(self.settings.end_of_text)
        if not self._content.cutting.issuperset(wanted):
            return None
        names = {name: hidden for hidden, name in self._content.hidden.items()}
        return tuple(names[name] for name in wanted)

    @cached_property
    def plain(self) -> str:
        """The tokenizer.json with its control tokens renamed, without post-processor, truncation and padding."""
        self._content  # noqa: B018 - writes it too, unless `check` kept what it parsed
        if "plain" in vars(self):
            return cast(str, vars(self)["plain"])
        value = vars(self).get("_parsed")
        if value is None:
            value = self._load_again()[1]
        return orjson.dumps(value).decode()

    def take_parsed(self) -> dict[str, Any]:
        """`plain`, parsed: what `check` kept, which only the first call gets, else parsed anew."""
        kept: dict[str, Any] | None = vars(self).pop("_parsed", None)
        if kept is not None:
            return kept
        with no_garbage_collection():
            return cast(dict[str, Any], orjson.loads(self.plain))

    def drop_parsed(self) -> None:
        """Frees what `check` kept."""
        vars(self).pop("_parsed", None)

    def keep(self) -> TokenizerFile:
        """This process's tokenizer (`tokenizer_of_process`), which is not read again: it has what this one has read."""
        kept = tokenizer_of_process(self.settings, self.vocab_size)
        if kept is not self:
            vars(kept).update(vars(self))
            self.drop_parsed()
        return kept

    def check(self, *, keep_parsed: bool = False) -> None:
        """Checks that the document boundaries exist and all ids fit the model.

        Args:
            keep_parsed: whether the parsed file, which takes ten times its size, is kept for `take_parsed`.

        Raises:
            UserError: a token is missing, or the tokenizer has more ids than the model's embedding.
        """
        if keep_parsed and not self.is_read:
            vars(self)["_content"], vars(self)["_parsed"] = self._load()
        if self.begin_of_text_id == self.end_of_text_id:
            raise UserError(
                f"model.tokenizer: {self.settings.end_of_text!r} both opens and closes documents; leave "
                "begin_of_text out"
            )
        if self._content.largest >= self.vocab_size:
            raise UserError(
                f"{self.path}: its largest id is {self._content.largest}, but model.vocab_size is "
                f"{self.vocab_size}; tokenizer and model don't belong together"
            )


def _treats_the_first_text_apart(value: Mapping[str, Any]) -> bool:
    """Whether a tokenizer does something at the beginning of all it is given, but not after a boundary."""
    return b'"prepend_scheme":"first"' in orjson.dumps(value.get("pre_tokenizer"))


def _vocabulary(vocab: Any) -> dict[str, int]:
    """Ids by token: BPE, WordPiece and WordLevel have a mapping, Unigram a list of tokens and scores.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(vocab, dict):
        return vocab
    if not isinstance(vocab, list):
        raise TypeError
    return {token: id_ for id_, (token, _) in enumerate(vocab)}


def _hidden(sha256: str, id_: int) -> str:
    """A name for a control token, in characters that every kind of vocabulary may hold."""
    return f"<{hashlib.sha256(f'{sha256}:{id_}'.encode()).hexdigest()}>"


def _hide(value: dict[str, Any], names: Mapping[str, str]) -> None:
    """Renames control tokens in a parsed tokenizer.json.

    Without that, text could become them even if they are no added tokens: a Unigram model knows `</s>` as a piece, and
    so do other models as a whole word. What a BPE vocabulary needs to build other tokens keeps its name and is no added
    token any more; a text that becomes it is refused (`Encoder`).

    Args:
        value: the file.
        names: new names.
    """
    model = value["model"]
    vocab = model["vocab"]
    inside = names.keys() & _vocabulary(vocab).keys()
    built = _built(model, inside)
    if isinstance(vocab, dict):
        if hide := inside - built:
            for token in hide:
                vocab[names[token]] = vocab.pop(token)
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in names.keys() - built:
        model["unk_token"] = names[model["unk_token"]]
    value["added_tokens"] = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in value.get("added_tokens") or []
        if token["content"] not in built
    ]


def _built(model: Mapping[str, Any], names: set[str]) -> set[str]:
    """Those among a vocabulary's tokens that BPE begins with or its merges make."""
    if model.get("type", "BPE") != "BPE" or "merges" not in model or not names:
        return set()
    found = {name for name in names if len(name) == 1}
    merges = model["merges"]
    # Without a loop in Python: there may be a million.
    return found.union(names.intersection(map("".join, merges) if merges and isinstance(merges[0], list) else
                                          (merge.replace(" ", "") for merge in merges)))  # fmt: skip


@functools.lru_cache(maxsize=2)
def tokenizer_of_process(settings: Tokenizer, vocab_size: int) -> TokenizerFile:
    """This process's tokenizer, read once."""
    return TokenizerFile(settings, vocab_size)
