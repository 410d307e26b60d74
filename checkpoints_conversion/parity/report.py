"""The result of a comparison: `parity.json` for programs, `parity.html` for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emma.base.files import write_json, write_text
from emma.base.manifest import package_versions
from emma.checkpoints_conversion.parity.tensors import TensorResult

__all__ = ["LanguageResult", "LogitsResult", "Report"]


@dataclass(frozen=True)
class LanguageResult:
    """Comparison of the logits on one language's text.

    Attributes:
        language: the language.
        tokens: positions compared.
        max_abs_delta: largest difference between two logits.
        mean_kl: mean over positions of KL(first ‖ second), in nats.
        max_kl: largest KL at any position, in nats.
        top1_agreement: share of positions where both models rank the same token first.
    """

    language: str
    tokens: int
    max_abs_delta: float
    mean_kl: float
    max_kl: float
    top1_agreement: float


@dataclass(frozen=True)
class LogitsResult:
    """Logits compared in FP32.

    Attributes:
        tolerance: largest allowed difference.
        tokenizer: what produced the token ids.
        library_a: library that computed the first model's logits.
        library_b: library that computed the second model's logits.
        device: `cpu` or `cuda`.
        languages: results by language.
        layers: largest difference between the hidden states after the embedding and after each layer.
    """

    tolerance: float
    tokenizer: str
    library_a: str
    library_b: str
    device: str
    languages: list[LanguageResult]
    layers: list[float]

    @property
    def tokens(self) -> int:
        return sum(result.tokens for result in self.languages)

    @property
    def max_abs_delta(self) -> float:
        return max(result.max_abs_delta for result in self.languages)

    @property
    def mean_kl(self) -> float:
        return sum(result.mean_kl * result.tokens for result in self.languages) / self.tokens

    @property
    def max_kl(self) -> float:
        return max(result.max_kl for result in self.languages)

    @property
    def top1_agreement(self) -> float:
        return sum(result.top1_agreement * result.tokens for result in self.languages) / self.tokens

    @property
    def passed(self) -> bool:
        """Whether all differences are within the tolerance; NaN is not."""
        return all(result.max_abs_delta <= self.tolerance for result in self.languages)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: totals first, then details."""
        totals = ("max_abs_delta", "mean_kl", "max_kl", "top1_agreement", "tokens", "passed")
        return {name: getattr(self, name) for name in totals} | asdict(self)


@dataclass(frozen=True)
class Report:
    """The full result of a comparison.

    Attributes:
        a: first folder.
        b: second folder.
        shape_differences: differing model fields that change what is computed.
        tensors: results by parameter; None if not compared.
        logits: None if not compared.
        started: start time, UTC.
        finished: end time, UTC.
        released: which weights of a Megatron checkpoint were compared, and how far they are from its other set
            (`main_weights.release_record`); None if neither folder is one.
    """

    a: str
    b: str
    shape_differences: list[str]
    tensors: list[TensorResult] | None
    logits: LogitsResult | None
    started: str
    finished: str
    released: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def different(self) -> list[TensorResult]:
        """The parameters that are not equal."""
        return [result for result in self.tensors or [] if not result.equal]

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is equal, or within the tolerance for logits."""
        return (
            not self.shape_differences and not self.different and (self.logits is None or self.logits.passed)
        )

    def faults(self) -> list[str]:
        """What differs, one line each, most significant first."""
        faults = [f"the models differ in {difference}" for difference in self.shape_differences]
        if different := self.different:
            first = different[0]
            faults.append(
                f"{len(different)} of {len(self.tensors or [])} parameters differ; the first is {first.name}, "
                f"in {first.numbers_different} values, by up to {first.max_abs_delta:.3g}"
            )
        if self.logits is not None and not self.logits.passed:
            worst = max(
                self.logits.languages, key=lambda r: (r.max_abs_delta != r.max_abs_delta, r.max_abs_delta)
            )
            faults.append(
                f"logits differ by up to {worst.max_abs_delta:.3g} ({worst.language}), more than "
                f"{self.logits.tolerance:.0e}; mean KL {self.logits.mean_kl:.3g}, "
                f"same top token in {self.logits.top1_agreement:.2%}"
            )
        return faults

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in `parity.json`."""
        tensors = None
        if self.tensors is not None:
            tensors = {
                "compared": len(self.tensors),
                "equal": len(self.tensors) - len(self.different),
                "different": [asdict(result) for result in self.different],
                "sha256": {result.name: result.sha256_b for result in self.tensors},
            }
        return {
            "passed": self.passed,
            "faults": self.faults(),
            "a": self.a,
            "b": self.b,
            "shape_differences": self.shape_differences,
            "released": self.released,
            "tensors": tensors,
            "logits": None if self.logits is None else self.logits.as_dict(),
            "started": self.started,
            "finished": self.finished,
            "versions": self.versions,
        }

    def html(self) -> str:
        """A self-contained page."""
        import jinja2

        from emma.checkpoints_conversion.main_weights import release_sentence

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        return environment.get_template("parity.html.j2").render(
            report=self, weights=None if self.released is None else release_sentence(self.released)
        )

    def write(self, folder: Path) -> None:
        """Writes `parity.json` and `parity.html` into an existing folder."""
        write_json(folder / "parity.json", self.as_dict())
        write_text(folder / "parity.html", self.html())
