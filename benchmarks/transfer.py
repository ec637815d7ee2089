"""The main job on real pictures: fine-tune mobilenet_v2 on grocery20, export INT8, compare.

    EDGETL_KIT=... python benchmarks/transfer.py [--quick] --json FILE

Measures what issue figures name: top-1 of the default strategy over three seeds and of the linear probe, with
their wall times; the loss of each INT8 form; and the latency of the x86 form against FP32, as the median of
interleaved ratios. ``--quick`` trains one epoch of one seed: it proves that the script runs, its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import check, kit_folder, say

from edgetl import host
from edgetl.artifacts import write_json

SEEDS = (0, 1, 2)


def edgetl(*arguments: str) -> float:
    """Runs a command in a fresh process and returns its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edgetl.cli.main", *arguments], check=True)
    return time.perf_counter() - start


def train(kit: Path, out: Path, seed: int, *options: str) -> dict[str, Any]:
    """Fine-tunes and returns a row."""
    weights = kit / "weights" / "mobilenet_v2_tv.safetensors"
    seconds = edgetl(
        "finetune", str(kit / "grocery20"), "--backbone", "mobilenet_v2", "--weights", str(weights),
        "--seed", str(seed), "--out", str(out), *options,
    )  # fmt: skip
    val = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["val"]
    name = "lp-ft (default)" if "probe" not in options else "probe"
    return {"name": name, "seed": seed, "top1": val["top1"], "macro_f1": val["macro_f1"], "seconds": seconds}


def export(run: Path, bundle: Path, *options: str) -> dict[str, Any]:
    """Exports INT8 and returns a row with every variant's metrics."""
    seconds = edgetl("export", str(run), "--int8", "--out", str(bundle), *options)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    variants = {v["name"]: {"bytes": v["bytes"], **v["metrics"]} for v in manifest["variants"]}
    return {"name": "export", "seconds": seconds, "variants": variants}


def bench(bundle: Path, work: Path, seconds: float) -> dict[str, Any]:
    """Measures FP32 against the x86 form."""
    result = work / "bench.json"
    edgetl(
        "bench", str(bundle), "--variant", "fp32", "--variant", "int8-x86", "--seconds", str(seconds),
        "--json", str(result),
    )  # fmt: skip
    entries = json.loads(result.read_text(encoding="utf-8"))["results"]
    kept = ("variant", "latency_ms", "latency_ratio", "bytes", "cold_start")
    return {"name": "bench", "results": [{name: entry[name] for name in kept} for entry in entries]}


def measure(kit: Path, work: Path, *, quick: bool) -> dict[str, Any]:
    """Runs everything and returns the result."""
    short = ("--epochs", "1", "--strategy", "last:1") if quick else ()
    seeds = SEEDS[:1] if quick else SEEDS
    probe = train(kit, work / "probe", 0, "--strategy", "probe", *(("--epochs", "1") if quick else ()))
    tuned = [train(kit, work / f"g{seed}", seed, *short) for seed in seeds]
    exported = export(
        work / "g0",
        work / "g.edgetl",
        *(("--max-drop", "100pt", "--method", "mse", "--no-repair", "--no-mixed") if quick else ()),
    )
    timed = bench(work / "g.edgetl", work, 0.5 if quick else 10.0)
    mean = sum(row["top1"] for row in tuned) / len(tuned)
    int8 = exported["variants"]
    ratio = timed["results"][1]["latency_ratio"]
    return {
        "format_version": 1,
        "quick": quick,
        "host": host.facts(),
        "rows": [probe, *tuned, exported, timed],
        "checks": [
            check("lp-ft: mean top-1 over seeds", mean, 0.88, at_least=True),
            check("lp-ft: slowest seed, minutes", max(r["seconds"] for r in tuned) / 60, 12, at_least=False),
            check("probe: top-1", probe["top1"], 0.83, at_least=True),
            check("probe: minutes", probe["seconds"] / 60, 2, at_least=False),
            check("int8-tensorrt: top-1 drop", int8["int8-tensorrt"]["top1_drop"], 0.01, at_least=False),
            check("int8-x86: latency / fp32", ratio, 0.65, at_least=False),
        ],
    }


def main() -> None:
    """Parses the command line, measures, writes, and says what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="prove that the script runs")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    kit = kit_folder(parser, "grocery20/ and weights/")
    with tempfile.TemporaryDirectory() as work:
        result = measure(kit, Path(work), quick=options.quick)
    write_json(options.json, result)
    say(result["checks"])


if __name__ == "__main__":
    main()
