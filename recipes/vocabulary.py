"""What a folder says of a vocabulary that grew: a small file that travels with the tokenizer, from its extension to the
released model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from emma.base.errors import UserError
from emma.base.files import read_json, write_json

__all__ = ["GROWTH_NAME", "Growth", "growth_of"]

GROWTH_NAME = "vocabulary_extension.json"


@dataclass(frozen=True)
class Growth:
    """An extension of a base's vocabulary.

    Attributes:
        base_sha256: of the base's tokenizer.json.
        base_tokens: its ids; the first new id.
        tokens: new ids.
        pattern: `base`, or `marks` where old text with combining marks has other ids than in the base.
        selection: how tokens were chosen.
        languages: languages whose text they were chosen from.
        initialise: how the model's rows for them began; "" for a tokenizer alone.
    """

    base_sha256: str
    base_tokens: int
    tokens: int
    pattern: str = "base"
    selection: str = "temperature"
    languages: list[str] = field(default_factory=list)
    initialise: str = ""

    def write(self, folder: Path) -> None:
        """Writes it beside the tokenizer."""
        write_json(folder / GROWTH_NAME, asdict(self))

    @property
    def sentence(self) -> str:
        """What a reader of a plan, report or card should know."""
        begun = f"; the model's rows for them began as `{self.initialise}`" if self.initialise else ""
        return (
            f"The base's vocabulary of {self.base_tokens:,} ids was extended by {self.tokens:,} tokens, chosen from text in "
            f"{len(self.languages)} languages{begun}. Tokens, and losses per token, are not comparable with the base's; bits "
            "per byte are."
        )


def growth_of(folder: str | Path) -> Growth | None:
    """How the vocabulary of a tokenizer's (or model's) folder grew; None if it is a base's own.

    Raises:
        UserError: the file that says so is damaged.
    """
    folder = Path(folder)
    path = (folder.parent if folder.suffix == ".json" else folder) / GROWTH_NAME
    if not path.is_file():
        return None
    try:
        return Growth(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path}: {error}; make the extension again") from None
