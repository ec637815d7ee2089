"""What ``edgetl bench`` compares with what, which limits it keeps, and the files it writes of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetl.bench import BenchConfig, Contender, Limits, Result, Verdict
    from edgetl.bench.boards import Board

__all__ = ["Gate", "Reports"]


@dataclass(frozen=True)
class Reports:
    """Files that a gate writes."""

    junit: Path | None
    markdown: Path | None

    def write(self, judged: Sequence[tuple[Result, Verdict]]) -> None:
        """Writes them."""
        from edgetl.artifacts import write_text
        from edgetl.bench.verdict import junit, markdown
        from edgetl.errors import InputError

        if self.junit is not None:
            write_text(self.junit, junit(judged))
        if self.markdown is not None:  # a job's summary is a file that several steps add to
            try:
                with self.markdown.open("a", encoding="utf-8") as file:
                    file.write(markdown(judged))
            except OSError as error:
                raise InputError(f"{self.markdown}: cannot be written ({error.strerror})") from None


@dataclass(frozen=True)
class Gate:
    """What is compared with what, and the limits."""

    limits: Limits
    against: str | None
    baseline: str | None
    earlier: Result | None = None

    def check(
        self, bundles: Sequence[str], reports: Reports, config: BenchConfig, where: Sequence[Board | None]
    ) -> None:
        """Refuses options that contradict each other, before anything is measured."""
        from edgetl.errors import InputError

        if self.against is not None and self.baseline is not None:
            raise InputError("--against and --baseline are two references: give one")
        if self.against is not None and len(bundles) != 1:
            raise InputError(f"--against compares one BUNDLE with its reference, {len(bundles)} were given")
        if self.limits.max_regression is not None and self.against is None and self.baseline is None:
            raise InputError("--max-regression needs something to compare with: --against BUNDLE or --baseline FILE")
        if self.against is not None and len(config.engines) > 1:
            raise InputError("--against measures on one engine: give --engine once")
        if self.baseline is not None and len(where) > 1:
            raise InputError("--baseline is of one machine: give one --device")
        if self.baseline is not None and self.limits.max_regression is None and self.limits.max_drop is None:
            raise InputError("--baseline needs a limit: --max-regression 5% or --max-drop 0.5pt")
        if reports != Reports(None, None) and self.limits.empty:
            raise InputError(
                "--junit and --markdown report a gate's checks: give a limit, --max-drop 0.5pt for example"
            )

    def check_models(self, contenders: Sequence[Contender], config: BenchConfig, *, here: bool) -> None:
        """Refuses what the bundles, their data and this machine (if it is ``here``) already tell cannot be judged."""
        from edgetl.bench.conditions import fingerprint
        from edgetl.bench.gate import check_comparable
        from edgetl.bench.stage import settings_to_dict
        from edgetl.bundle import open_bundle
        from edgetl.errors import InputError

        absent = config.variants and "fp32" not in config.variants
        if absent and self.limits.max_drop is not None and self.against is None and self.baseline is None:
            raise InputError("--max-drop compares variants with their FP32: add --variant fp32")
        for contender in contenders:
            labels = open_bundle(contender.path).spec.labels
            for label in self.limits.min_recall:
                if label not in labels:
                    known = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
                    raise InputError(f"--min-recall {label}: {contender.name} has no such class; it knows {known}")
        if self.earlier is not None and self.baseline is not None and here:
            settings = settings_to_dict(config, contenders)
            check_comparable(fingerprint(), settings, self.earlier, self.limits, self.baseline)
        if contenders[0].dataset is None and (self.limits.max_drop is not None or self.limits.min_recall):
            raise InputError("--max-drop and --min-recall judge on pictures: give --data")

    def judge(self, result: Result) -> Verdict | None:
        """Judges a result that was not measured against a reference; None where there is nothing to judge."""
        from edgetl.bench import Verdict, answer_checks, baseline_checks, fp32_checks, recall_checks

        if self.limits.empty:
            return None
        checks = [check for entry in result.entries for check in recall_checks(entry, self.limits.min_recall)]
        checks += answer_checks(result.entries)
        if self.earlier is not None and self.baseline is not None:
            checks = [*baseline_checks(result, self.earlier, self.limits, self.baseline), *checks]
        elif self.limits.max_drop is not None:
            checks = [*fp32_checks(result, self.limits.max_drop), *checks]
        return Verdict(checks, self.baseline or "")
