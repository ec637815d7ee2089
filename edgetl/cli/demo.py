"""``edgetl demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import PATH, emit_json, json_option

__all__ = ["demo"]

_MODELS = ("source", "transferred", "from-scratch", "original")
_PARTS = frozenset({"digits-0-4", "digits-5-9", *_MODELS, *(f"{name}.edgetl" for name in _MODELS)})
_SOURCE_EPOCHS = 6
_TARGET_EPOCHS = 12


@click.command(short_help="Run the whole path on built-in data, in under three minutes.")
@click.option("--out", type=PATH, default=Path("models/demo"), show_default=True, help="Folder to write.")
@click.option(
    "--shots", type=click.IntRange(2, 100), default=10, show_default=True, help="Training pictures for each new class."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace what is in --out.")
@json_option
def demo(out: Path, shots: int, seed: int, force: bool, json_out: str | None) -> None:
    """Train a small network on the digits 0-4, transfer it to 5-9 with few pictures, export INT8, compare.

    The same network is also trained from scratch on those few pictures: the difference is what transfer is worth.
    """
    import shutil

    from edgetl import host
    from edgetl.bench import BenchConfig, Contender
    from edgetl.bench import bench as run_bench
    from edgetl.cli.display import Display
    from edgetl.cli.results import show_results
    from edgetl.dataset import open_dataset, write_digits
    from edgetl.errors import InputError

    if out.exists():
        if not force:
            raise InputError(f"{out}: exists already; choose another --out or give --force")
        strange = [out] if not out.is_dir() else [p for p in sorted(out.iterdir()) if p.name not in _PARTS]
        if strange:
            raise InputError(
                f"{strange[0]}: is no part of a demo, --force would delete somebody's files; choose another --out"
            )
        shutil.rmtree(out)
    with Display(json_to_stdout=json_out == "-") as display:
        old, new = out / "digits-0-4", out / "digits-5-9"
        display.note("1. scanned digits: 0-4 in plenty, 5-9 a few of each")
        write_digits(old, only=range(5))
        write_digits(new, only=range(5, 10), per_class=shots)
        trained = _Trainer(display, out, seed)
        display.note("2. a small network learns 0-4: the pretrained source")
        source = trained.run("source", old, weights="none", strategy="full", epochs=_SOURCE_EPOCHS)
        display.note(f"3. transfer to 5-9 with {shots} pictures of each, and the same from scratch")
        # a source that saw five digits has statistics of those five: here they must follow the new ones
        few = {"epochs": _TARGET_EPOCHS, "batch_size": 16, "lr": 1e-3, "batchnorm": "train"}
        weights = str(source / "checkpoint.safetensors")
        runs = {
            "original": (source, old),
            "transferred": (trained.run("transferred", new, weights=weights, strategy="lp-ft", **few), new),
            "from-scratch": (trained.run("from-scratch", new, weights="none", strategy="full", **few), new),
        }
        display.note("4. export to ONNX and INT8, each variant judged")
        contenders = [
            Contender(name, trained.export(name, run, data), open_dataset(data)) for name, (run, data) in runs.items()
        ]
        display.note("5. compare: all variants alive in one process, timed in turn")
        config = BenchConfig(variants=("fp32", "int8-tensorrt", f"int8-{host.arch()}"), seconds=1.0)
        result = run_bench(contenders, config, on_progress=display.progress)
        show_results(display, result)
    top1 = {e.bundle: e.accuracy["top1"] or 0.0 for e in result.entries if e.variant == "fp32"}
    gain = (top1["transferred"] - top1["from-scratch"]) * 100
    display.console.print(
        f"original: digits 0-4; transferred and from-scratch: digits 5-9, {shots} pictures each. Transfer was "
        f"worth {gain:+.1f} points.\n"
        f"Your turn: edgetl finetune PHOTOS, edgetl export, edgetl bench; the bundles are in {out}."
    )
    emit_json(json_out, result.to_dict())


class _Trainer:
    """Trains and exports one after the other, with the same settings."""

    def __init__(self, display: Any, out: Path, seed: int) -> None:
        self._display = display
        self._out = out
        self._seed = seed

    def run(self, name: str, data: Path, **settings: Any) -> Path:
        """Fine-tunes and returns the run's folder."""
        from edgetl.dataset import open_dataset
        from edgetl.finetune import FinetuneConfig, finetune

        config = FinetuneConfig(backbone="small_cnn", augment="light", seed=self._seed, **settings)
        reporter = _Named(self._display, name)
        return finetune(open_dataset(data), config, self._out / name, reporter=reporter).root

    def export(self, name: str, run: Path, data: Path) -> Path:
        """Exports a run and returns the bundle's folder."""
        from edgetl.dataset import open_dataset
        from edgetl.export import ExportConfig, export_run

        bundle = self._out / f"{name}.edgetl"
        # two digits more or less are a point here: the demo shows a drop, it does not judge it
        config = ExportConfig(int8=True, max_drop=0.05, seconds=0.5)
        export_run(run, open_dataset(data), config, bundle, reporter=_Named(self._display, name))
        return bundle


class _Named:
    """Puts a name before each stage, and keeps tables for the end."""

    def __init__(self, display: Any, name: str) -> None:
        self._display = display
        self._name = name

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Passes on."""
        self._display.progress(f"{self._name}: {stage}", done, total, text)

    def note(self, text: str) -> None:
        """Says nothing: what the demo shows is the comparison at the end."""

    def weights(self, report: Any) -> None:
        """Passes on."""
        self._display.weights(report)

    def variants(self, variants: Any) -> None:
        """Says nothing: the comparison at the end shows them."""
