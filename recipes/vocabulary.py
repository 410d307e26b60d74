"""What a folder says of a vocabulary that grew: a small file that travels with the tokenizer, from its extension to the
released model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from emma.base.errors import UserError
from emma.base.files import read_json, write_json

__all__ = ["GROWTH_NAME", "Growth", "cost_sentence", "growth_of", "report_folder"]

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


def report_folder(corpus: str | Path, sha256: str) -> Path:
    """Where `emma tokenizer report` puts what a tokenizer costs on a corpus."""
    return Path(corpus) / "statistics" / f"tokenizer-{sha256[:12]}"


def cost_sentence(corpus: str | Path, sha256: str | None) -> str | None:
    """What a report says of a tokenizer in one sentence; None if there is none, or if it has no pairs.

    Raises:
        UserError: the report is damaged.
    """
    path = report_folder(corpus, sha256 or "-") / "report.json"
    if not path.is_file():
        return None
    report = read_json(path)
    premiums = report["tokenizers"][0]["premiums"]
    if premiums is None:
        return None
    return (
        f"For the same sentences ({report['pair_set']}), {premiums['languages']} languages need {premiums['median']:.2f} "
        f"times as many tokens as English (median; largest {premiums['maximum']:.2f}, Gini index {premiums['gini']:.2f})"
    )
