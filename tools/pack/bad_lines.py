"""Records that cannot be used: they stop the pack, or are set aside with file, place and reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from emma.base.errors import UserError

__all__ = ["QUARANTINE", "BadLines", "check_share"]

QUARANTINE = "quarantine.jsonl"
"""File of a component with its unusable records: `file`, `line` (row of a parquet or Arrow file, from 0), `reason`,
`excerpt`."""

_EXCERPT = 200
_MANY = 10_000


@dataclass
class BadLines:
    """Unusable records of a work unit.

    Args:
        share: of the component's records that may be unusable.
    """

    share: float = 0.0
    found: list[dict[str, str | int]] = field(default_factory=list)
    records: int = 0

    def add(self, path: str, line: int, reason: str, excerpt: bytes | str = b"") -> None:
        """Sets a record aside.

        Args:
            path: its file.
            line: its place there.
            reason: what is wrong, in words.
            excerpt: its beginning.

        Raises:
            UserError: the recipe allows none, or there are far too many.
        """
        if not self.share:
            raise UserError(
                f"{path}:{line}: {reason}; correct or remove it, or set a share of bad records aside with "
                "data.pack.components.*.max_bad_lines"
            )
        text = (
            excerpt[:_EXCERPT].decode("utf-8", "replace")
            if isinstance(excerpt, bytes)
            else excerpt[:_EXCERPT]
        )
        self.found.append({"file": path, "line": line, "reason": reason, "excerpt": text})
        count = len(self.found)
        if count >= _MANY and count > self.share * (self.records + count):
            raise UserError(
                f"{path}:{line}: {reason}; {count:,} of {self.records + count:,} records are unusable, more than "
                f"data.pack.components.*.max_bad_lines allows ({self.share:.2%})"
            )

    def to_jsonl(self) -> bytes:
        """One JSON object a line."""
        return b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in self.found)


def check_share(name: str, share: float, bad: int, records: int, first: str) -> None:
    """Checks a whole component's share of unusable records.

    Args:
        name: the component.
        share: that may be unusable.
        bad: unusable ones.
        records: all others.
        first: the first unusable one, in words.

    Raises:
        UserError: there are more.
    """
    if bad > share * (bad + records):
        raise UserError(
            f"component {name}: {bad:,} of {bad + records:,} records are unusable ({bad / (bad + records):.2%}), more than "
            f"max_bad_lines allows ({share:.2%}); the first is {first}. Fix the files, or raise "
            f"data.pack.components.{name}.max_bad_lines and run the command again"
        )
