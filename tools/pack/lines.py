"""Lines of jsonl files: blocks of whole ones, and their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from emma.tools.corpus.streams import open_bytes
from emma.tools.pack.inputs import Segment

__all__ = ["LineNumbers", "line_blocks"]

_READ_BYTES = 2 << 20


class LineNumbers:
    """Number of the line with which a block begins; the lines before the segment are counted only if it is asked
    for."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._passed = 0
        self._before: int | None = None

    def pass_over(self, lines: int) -> None:
        """Goes on to the next block."""
        self._passed += lines

    @property
    def first(self) -> int:
        """Number of the block's first line in the file, from 1."""
        if self._before is None:
            self._before = 0
            if self._segment.start:
                with Path(self._segment.file.path).open("rb") as stream:
                    # The line that holds the byte before the segment is the last of those before it.
                    left = self._segment.start - 1
                    while left and (block := stream.read(min(left, _READ_BYTES))):
                        self._before += block.count(b"\n")
                        left -= len(block)
                self._before += 1
        return 1 + self._before + self._passed


def line_blocks(segment: Segment, size: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a segment in blocks of about `size` bytes, with the position of the block's first byte
    in the (uncompressed) file. The last line may lack its newline."""
    plain = segment.file.kind == "jsonl"
    with open_bytes(segment.file.path) as stream:
        # The buffered reader would cut the blocks by its own size.
        raw = cast(IO[bytes], cast(Any, stream).raw) if plain else stream
        position = segment.start if plain else 0
        if position:
            # The line of the byte before belongs to the previous segment.
            raw.seek(position - 1)
            position += len(raw.readline()) - 1
        stop = segment.stop if plain else None
        yield from _blocks(raw.read, size, position, stop, raw.readline if plain else bytes)


def _blocks(
    read: Callable[[int], bytes],
    batch_bytes: int,
    position: int = 0,
    stop: int | None = None,
    rest_of_line: Callable[[], bytes] = bytes,
) -> Iterator[tuple[bytes, int]]:
    """Blocks of the lines that begin in [position, stop) of a stream whose position is `position`."""
    rest = b""
    while True:
        start = position
        if stop is not None and start >= stop:
            return
        size = batch_bytes if stop is None else min(batch_bytes, stop - start - len(rest))
        block = read(size) if size > 0 else b""
        at_stop = stop is not None and start + len(rest) + len(block) >= stop
        if at_stop or not block:
            content = rest + block
            if at_stop and not content.endswith(b"\n"):
                # The last line begins before `stop` and ends after it.
                content += rest_of_line()
            if content:
                yield content, start
            return
        cut = block.rfind(b"\n") + 1
        if not cut:
            rest += block
            continue
        content = b"".join((rest, memoryview(block)[:cut]))
        rest = block[cut:]
        del block  # as large as the content, while that is worked on
        yield content, start
        position = start + len(content)
