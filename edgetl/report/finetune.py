"""The report of a fine-tuning run: how it learned, and what it can do now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.report.blocks import Block, Chart, Facts, Fold, Grid, Notes, Page, Section, Table
from edgetl.report.charts import Bar, Line, bars, curves
from edgetl.report.decisions import confusion
from edgetl.report.naming import facts_from, in_words
from edgetl.report.page import html_from_page
from edgetl.report.trust import drift, robustness, scratch, verdict
from edgetl.report.units import count, percent

__all__ = ["finetune_report"]

History = Sequence[Mapping[str, Any]]

_CLASSES_DRAWN = 32
_CLASSES_LISTED = 1000
_LARGEST_TABLE = 200  # epochs


def finetune_report(
    metrics: Mapping[str, Any], history: History, config: Mapping[str, Any], stability: History = ()
) -> str:
    """Returns a run as a self-contained HTML page.

    Args:
        metrics: Of ``metrics.json``.
        history: Rows of ``history.csv``, their values as text or numbers; empty where a stage tells nothing.
        config: Of ``config.yaml``.
        stability: Rows of ``stability.csv``; empty where only a head was trained.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    val = metrics["val"]
    rows = [row for row in history if row.get("stage") != "final"]
    learned = _learning(rows)
    moved, bad, bought = drift(stability), robustness(metrics), scratch(metrics)
    blocks: list[Block] = [
        Section("Result", [_result(metrics), *verdict(metrics), *_left_out(metrics)]),
        *([Section("Learning", [Grid([*learned, *moved])])] if learned or moved else []),
        Section("Classes", _classes(val)),
        *([Section("Bad pictures", bad)] if bad else []),
        *([Section("Against random weights", bought)] if bought else []),
        Section("How it was made", [_settings(metrics, config), *_epochs(rows)]),
    ]
    lede = (
        f"{config.get('backbone', 'A network')} on {metrics['dataset']['source']}: top-1 {percent(val['top1'])} of "
        f"{count(val['pictures'], 'validation picture')}, macro F1 {percent(val['macro_f1'])}."
    )
    return html_from_page(Page("Fine-tuning", lede, blocks, "Written by edgetl finetune."))


def _result(metrics: Mapping[str, Any]) -> Facts:
    val = metrics["val"]
    shown = {"top1": "top-1", "macro_f1": "macro F1", "macro_precision": "precision", "macro_recall": "recall"}
    pairs = [(text, percent(val[name])) for name, text in shown.items()]
    return Facts([*pairs, ("ECE", f"{val['ece']:.3f}"), ("pictures", f"{val['pictures']:,}")], large=True)


def _left_out(metrics: Mapping[str, Any]) -> list[Block]:
    bad = metrics["dataset"]["audit"]["bad"]
    if not bad:
        return []
    shown = [": ".join(map(str, row)) if isinstance(row, list | tuple) else in_words(row) for row in bad[:10]]
    more = [f"and {len(bad) - 10} more"] if len(bad) > 10 else []
    return [Notes([*shown, *more], "doubt", f"{count(len(bad), 'picture')} left out")]


def _learning(rows: History) -> list[Block]:
    """Returns the learning curves; x counts epochs over all stages, and one epoch is no curve."""
    parts = _parts(rows)
    found: list[Block] = []
    for title, (unit, factor, columns) in _CURVES.items():
        lines = [_line(rows, column, factor) for column in columns]
        lines = [line for line in lines if len(line.ys) > 1]
        if lines:
            svg = curves(lines, "epoch, counted over all stages", unit, f"{title} by epoch", parts=parts)
            found.append(Chart(title, svg, _CAPTIONS[title]))
    return found


_CURVES = {
    "Loss": ("loss", 1.0, ("train_loss", "val_loss", "select_loss")),
    "Top-1": ("top-1, %", 100.0, ("train_top1", "val_top1", "select_top1")),
    "Learning rate": ("× 10⁻³", 1000.0, ("lr",)),
    "Gradient norm": ("norm", 1.0, ("gradient_norm",)),
}
_LINES = {"train": "s1", "val": "s2", "select": "s3", "lr": "s4", "gradient": "s4"}
_CAPTIONS = {
    "Loss": (
        "Train counts augmented pictures and smoothed labels where these are used, so it may lie above val. A probe "
        "finds the head alone, tune goes on with the network; a probe of one epoch is solved for, and its train is of "
        "pictures that were left out."
    ),
    "Top-1": "After each epoch; train counts pictures as they were augmented and mixed. No epoch is chosen by val.",
    "Gradient norm": "Of all gradients together, before clipping; the mean of each epoch's steps.",
    "Learning rate": "Of the head; deeper blocks have less by the layer decay.",
}


def _line(rows: History, column: str, factor: float) -> Line:
    name = column.partition("_")[0]
    values = [(i + 1.0, float(row[column]) * factor) for i, row in enumerate(rows) if row.get(column) not in (None, "")]
    return Line(
        "" if name in ("lr", "gradient") else name, [x for x, _ in values], [y for _, y in values], _LINES[name]
    )


def _parts(rows: History) -> list[tuple[float, str]]:
    """Returns where each stage begins, if there are several."""
    stages = [str(row.get("stage", "")) for row in rows]
    begins = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    return [(i + 0.5, stages[i]) for i in begins] if len(begins) > 1 else []


def _classes(val: Mapping[str, Any]) -> list[Block]:
    seen = [row for row in val["per_class"] if row["support"]]
    worst = sorted(seen, key=lambda row: row["recall"])
    drawn = [
        Bar(row["label"], [(row["recall"], "s1")], f"{percent(row['recall'])} of {row['support']:,}")
        for row in worst[:_CLASSES_DRAWN]
    ]
    caption = "Share of each class's validation pictures that are found, the worst first."
    if len(worst) > len(drawn):
        caption += f" The {len(drawn)} worst of {len(worst):,} classes are drawn."
    svg = bars(drawn, "Recall by class", largest=1.0)
    charts: list[Block] = [Chart("Recall by class", svg, caption)] if drawn else []
    rows = [
        [row["label"], *(percent(row[name]) for name in ("recall", "precision", "f1")), f"{row['support']:,}"]
        for row in val["per_class"][:_CLASSES_LISTED]
    ]
    table = Table(("class", "recall", "precision", "F1", "pictures"), rows)
    number = count(len(val["per_class"]), "class", "classes")
    return [Grid([*charts, *confusion(val)]), Fold("Every class", [table], number)]


def _settings(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Fold:
    dataset = metrics["dataset"]
    facts = [
        *facts_from(config),
        ("pictures looked at", in_words(dataset["audit"].get("pictures"))),
        ("dataset digest", dataset["digest"][:12]),
        ("checkpoint", metrics["checkpoint_sha256"][:12]),
    ]
    return Fold("Settings", [Facts(facts)])


def _epochs(rows: History) -> list[Block]:
    if not rows:
        return []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [[_short(row.get(name)) for name in columns] for row in rows[-_LARGEST_TABLE:]]
    table = Table([name.replace("_", " ") for name in columns], shown)
    return [Fold("Every epoch", [table], count(len(rows), "epoch"))]


def _short(value: Any) -> str:
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return in_words(value)
