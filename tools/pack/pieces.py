"""Documents compared with the reference piece by piece.

The reference encodes a megabyte in the time in which a fast engine encodes fifty. But text repeats its words: where the
tokenizer provably cuts text (`split_rule.py`), the reference encodes each distinct piece of the drawn documents once. A
document's ids are right if they spell its text, none crosses a cut, and each piece has the ids that the reference gives
it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emma.base.files import atomic_write
from emma.tools.pack.encoded import Encoded, edges_of, ranges
from emma.tools.pack.engine import REFERENCE, Engine, load_engine
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = ["Pieces", "pieces_of"]

_WHOLE = 32
"""One document of so many is compared whole although its pieces are known: the rule itself is watched."""
_LONGEST = 256
"""Most tokens of a piece that is remembered."""
_LONG = 1 << 18
_TEXT_BYTES = 4 << 10
_REMEMBERED = 4 << 20
_WINDOW_BYTES = 256 << 10
_MANY_ADDED = 64
_PATTERN = "pieces-*.npy"
_SPACE, _NEWLINE, _SLASH = b" \n/"


def _mark(ranges: str) -> np.ndarray:
    table = np.zeros(256, bool)
    for part in ranges.split():
        first, _, last = part.partition("-")
        table[int(first, 16) : int(last or first, 16) + 1] = True
    return table


# First bytes of characters none of which is white space; after some others, the second byte tells.
_SOLID = _mark("21-7E C3-DF E0 E4-EE F0-F4")
_WHITE_SECOND = {0xC2: _mark("85 A0"), 0xE1: _mark("9A A0"), 0xE2: _mark("80 81"), 0xE3: _mark("80")}


class Pieces:
    """What the reference says of pieces of text.

    Args:
        tokenizer: one that has a `split_rule`.
        reference: the reference.
    """

    def __init__(self, tokenizer: TokenizerFile, reference: Engine) -> None:
        self._lines = tokenizer.split_rule == "spaces and lines"
        self._added = tokenizer.ordinary
        self._reference = reference
        self._bytes, self._starts = _spellings(tokenizer)
        generator = np.random.default_rng(20261127)
        self._of_id = generator.integers(0, 1 << 63, len(self._starts) - 1, np.uint64)
        self._of_place = generator.integers(0, 1 << 63, _LONGEST, np.uint64) * 2 + 1
        self._right = np.zeros(0, np.uint64)  # hashes of pieces with their ids, sorted
        self._fresh: list[np.ndarray] = []
        self._seen: set[str] = set()
        self._turn = 0

    def unsure(self, texts: pa.Array, found: Encoded) -> np.ndarray:
        """Which documents aren't known to have the ids of the reference, as bools: they must be compared whole.

        Args:
            texts: large strings without nulls.
            found: their ids.
        """
        data, edges = _content(texts)
        unsure = np.zeros(len(texts), bool)
        for token in self._added:
            unsure |= pc.match_substring(texts, token).to_numpy(zero_copy_only=False)
        left = np.flatnonzero(~unsure)
        begin = 0
        while begin < len(left):
            limit = edges[left[begin]] + _WINDOW_BYTES
            stop = max(begin + 1, int(np.searchsorted(edges[left + 1], limit, side="right")))
            rows = left[begin:stop]
            begin = stop
            if len(rows) == 1 and edges[rows[0] + 1] > limit:
                row = int(rows[0])
                ids = found.ids[found.offsets[row] : found.offsets[row + 1]]
                unsure[row] = self._long_is_unsure(data[edges[row] : edges[row + 1]], ids)
                continue
            unsure[rows] = self._judge(*_taken(data, edges, rows), found.some(rows))
        return unsure

    def turns(self, lengths: np.ndarray) -> np.ndarray:
        """Which of the next documents are to be compared whole whatever is known of them, as bools.

        Args:
            lengths: their tokens; of the longest ones, the reference would take a hundred bytes a token.
        """
        turns = (self._turn + np.arange(len(lengths))) % _WHOLE == 0
        self._turn += len(lengths)
        return turns & (lengths < _LONG)

    def _long_is_unsure(self, data: np.ndarray, ids: np.ndarray) -> bool:
        """As `unsure`, for one document, in parts that end at cuts."""
        while len(ids):
            few = ids[:_WINDOW_BYTES]
            stops = np.cumsum(self._sizes(few))
            count = int(np.searchsorted(stops, _WINDOW_BYTES, side="right"))
            if count == len(ids):
                size = len(data)
            else:
                size = int(stops[count - 1]) if count else 0
                cuts = self._cuts(data[:size], np.array([0, size]))[1:]
                cuts = cuts[np.isin(cuts, stops[:count])]
                if not len(cuts):
                    return True
                size = int(cuts[-1])
                count = int(np.searchsorted(stops, size)) + 1
            part = Encoded(ids[:count], np.array([0, count]))
            if self._judge(data[:size], np.array([0, size]), part).any():
                return True
            data, ids = data[size:], ids[count:]
        return len(data) > 0

    def _sizes(self, ids: np.ndarray) -> np.ndarray:
        """Bytes that each id spells; 0 for an added token and what is no id."""
        last = len(self._starts) - 2
        return np.where(ids <= last, np.diff(self._starts)[np.minimum(ids, last)], 0)

    def _judge(self, data: np.ndarray, edges: np.ndarray, found: Encoded) -> np.ndarray:
        """As `unsure`, for documents of about `_WINDOW_BYTES` together, without added tokens.

        Args:
            data: their text in UTF-8.
            edges: where each begins in it, and the last ends.
            found: their ids.
        """
        sizes = self._sizes(found.ids)
        ends = edges_of(sizes)
        # The ids of a document spell as many bytes as it has.
        unsure = np.diff(ends[found.offsets]) != np.diff(edges)
        unsure |= _any_of(sizes == 0, found.offsets)
        if unsure.any():
            rows = np.flatnonzero(~unsure)
            if len(rows):
                unsure[rows] = self._judge(*_taken(data, edges, rows), found.some(rows))
            return unsure
        spelled = self._bytes[ranges(self._starts[found.ids], sizes)]
        unsure |= _any_of(spelled != data, edges)
        cuts = self._cuts(data, edges)
        first = np.searchsorted(ends, cuts)
        document = np.searchsorted(edges, cuts, side="right") - 1
        unsure[document[ends[first] != cuts]] = True
        keep = ~unsure[document]
        stops, after = np.append(cuts[1:], len(data)), np.append(first[1:], len(found.ids))
        self._look_up(
            data, found.ids, unsure, cuts[keep], stops[keep], document[keep], first[keep], after[keep]
        )
        return unsure

    def _look_up(
        self,
        data: np.ndarray,
        ids: np.ndarray,
        unsure: np.ndarray,
        cuts: np.ndarray,
        stops: np.ndarray,
        document: np.ndarray,
        first: np.ndarray,
        after: np.ndarray,
    ) -> None:
        """Marks the documents of pieces of which the reference says something else; asks it where it has not yet."""
        if not len(cuts):
            return
        lengths = after - first
        long = lengths > _LONGEST
        hashes = self._hashes(ids, first, lengths)
        # Sorted ones are found several times as fast.
        distinct, places = np.unique(hashes, return_index=True)
        wanted = long.copy()
        wanted[places[~_contains(self._right, distinct)]] = True
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return
        order, sizes = self._texts(data, cuts[rows], stops[rows])
        rows = rows[order]
        edges = edges_of(stops[rows] - cuts[rows])[edges_of(sizes)]
        content = data[ranges(cuts[rows], stops[rows] - cuts[rows])]
        buffers = [None, pa.py_buffer(edges), pa.py_buffer(content)]
        theirs = self._reference.encode(pa.Array.from_buffers(pa.large_string(), len(sizes), buffers))
        own = Encoded(ids[ranges(first[rows], lengths[rows])], edges_of(lengths[rows])[edges_of(sizes)])
        right = own.lengths == theirs.lengths
        alike = np.flatnonzero(right)
        ours, others = own.some(alike), theirs.some(alike)
        right[alike] = ~_any_of(ours.ids != others.ids, ours.offsets)
        right = np.repeat(right, sizes)
        self._remember(hashes[rows[right & ~long[rows]]])
        wrong = ~long & np.isin(hashes, hashes[rows[~right]])
        wrong[rows[~right]] = True
        unsure[document[wrong]] = True

    def _texts(self, data: np.ndarray, cuts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces joined to texts that the reference cuts into them: those that begin with a space and no white space after
        it may follow anything; each of the others begins a text.

        Returns:
            The order of the pieces, and how many of them each text has.
        """
        second = np.minimum(cuts + 1, len(data) - 1)
        spaced = (data[cuts] == _SPACE) & (stops - cuts > 1) & _solid(data, second)
        heads, tails = np.flatnonzero(~spaced), np.flatnonzero(spaced)
        before = edges_of(stops[tails] - cuts[tails])
        count = max(len(heads), int(before[-1]) // _TEXT_BYTES + 1)
        number = np.concatenate([np.arange(len(heads)), before[:-1] * count // max(int(before[-1]), 1)])
        order = np.concatenate([heads, tails])[np.argsort(number, kind="stable")]
        sizes = np.bincount(number, minlength=count)
        return order, sizes[sizes > 0]

    def _cuts(self, data: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Places of the first bytes of pieces, sorted: those of documents among them; none is empty."""
        cut = np.zeros(len(data) + 1, bool)
        cut[edges] = True
        after = np.flatnonzero(data == _SPACE) + 1
        after = after[~cut[after]]  # the last space of a document is followed by nothing
        cut[after[_solid(data, after)] - 1] = True
        if self._lines:
            after = np.flatnonzero(data[:-1] == _NEWLINE) + 1
            cut[after[_solid(data, after) & (data[after] != _SLASH)]] = True
        return np.flatnonzero(cut[:-1])

    def _hashes(self, ids: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """A hash of each piece's ids, which spell its bytes. Different ones collide with a chance of about 2⁻⁶³."""
        short = np.minimum(lengths, _LONGEST)
        place = ranges(np.zeros(len(short), np.int64), short)
        values = self._of_id[ids[ranges(first, short)]] * self._of_place[place]
        return np.add.reduceat(values, edges_of(short)[:-1]) + lengths.astype(np.uint64)

    def _remember(self, hashes: np.ndarray) -> None:
        if len(hashes) and len(self._right) < _REMEMBERED:
            self._right = _merged(self._right, hashes)
            self._fresh.append(hashes)

    def load(self, folder: Path) -> None:
        """Takes over what other processes have asked the reference for the same component."""
        for path in folder.glob(_PATTERN):
            if str(path) not in self._seen and len(self._right) < _REMEMBERED:
                self._seen.add(str(path))
                self._right = _merged(self._right, np.load(path))

    def save(self, folder: Path, unit: int) -> None:
        """Leaves what was asked since the last time to other processes."""
        if self._fresh:
            path = folder / _PATTERN.replace("*", f"{unit:06d}")
            with atomic_write(path) as handle:
                np.save(handle, np.concatenate(self._fresh))
            self._fresh = []
            self._seen.add(str(path))


@functools.lru_cache(maxsize=1)
def pieces_of(tokenizer: TokenizerFile) -> Pieces | None:
    """This process's pieces of a tokenizer; None if it must be compared by whole documents."""
    if tokenizer.split_rule is None or len(tokenizer.ordinary) > _MANY_ADDED:
        return None
    return Pieces(tokenizer, load_engine(REFERENCE, tokenizer))


def _spellings(tokenizer: TokenizerFile) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all ids, concatenated, and where each id's begin; added tokens and gaps have none.

    Byte-level vocabularies write each byte as a character: itself where that is printable, else one from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = np.full(0x110000, -1, np.int16)
    table[printable] = printable
    table[256 : 256 + len(others)] = others
    spelled = list(tokenizer.ids)
    ids = np.fromiter(tokenizer.ids.values(), np.int64, len(spelled))
    order = np.argsort(ids)
    tokens, ids = [spelled[number] for number in order.tolist()], ids[order]
    letters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
    values = table[letters]
    sizes = np.fromiter(map(len, tokens), np.int64, len(tokens))
    odd = _any_of(values < 0, edges_of(sizes))  # a token in other characters spells nothing
    odd |= np.isin(ids, [tokenizer.ids[token] for token in tokenizer.added])
    values, sizes = values[np.repeat(~odd, sizes)], np.where(odd, 0, sizes)
    of_id = np.zeros(max(tokenizer.ids.values()) + 1, np.int64)
    of_id[ids] = sizes
    return values.astype(np.uint8), edges_of(of_id)


def _content(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of large strings, and where each begins and the last ends, from 0."""
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return content[edges[0] : edges[-1]], edges - edges[0]


def _taken(data: np.ndarray, edges: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some documents' bytes, one after another, and their edges."""
    sizes = edges[rows + 1] - edges[rows]
    return data[ranges(edges[rows], sizes)], edges_of(sizes)


def _any_of(flags: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Whether a flag is set between two edges, for all neighbours."""
    return np.diff(np.searchsorted(np.flatnonzero(flags), edges)) > 0


def _solid(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether the characters that begin at these places are surely no white space."""
    first = data[places]
    second = data[np.minimum(places + 1, len(data) - 1)]
    solid = _SOLID[first]
    for lead, white in _WHITE_SECOND.items():
        solid |= (first == lead) & ~white[second]
    return solid


def _merged(values: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Sorted values with more of them."""
    more = np.sort(more)
    return np.insert(values, np.searchsorted(values, more), more)


def _contains(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether sorted values contain each wanted one."""
    if not len(values):
        return np.zeros(len(wanted), bool)
    return values[np.minimum(np.searchsorted(values, wanted), len(values) - 1)] == wanted
