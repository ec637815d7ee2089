"""What each backbone reaches on real pictures: accuracy in each precision, size, work, and latency here.

    EDGETL_KIT=... python benchmarks/zoo.py [--quick] [--work DIR [--prepare]] --json FILE

Every entry is fine-tuned by the default strategy, exported to FP16 and INT8, and timed against its own FP32; the same
three commands that a user types. Of every recipe, the network is timed with random weights, which change no kernel.
`benchmarks/tables.py` writes models/README.md from the result. With ``--work`` runs and bundles are kept, and used
where they are there; ``--prepare`` makes them and times nothing, so that an idle machine is needed for minutes only.
``--quick`` trains one epoch of one entry at a small size: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import check, kit_folder
from torch.utils.flop_counter import FlopCounterMode

from edgetl import host
from edgetl.artifacts import write_json
from edgetl.backbones import load_network, load_pretrained, new_network
from edgetl.bench import BenchConfig, Contender, bench, latency_ms
from edgetl.finetune import FinetuneConfig, open_recipe, recipe_names
from edgetl.selection import write_timed_bundle
from edgetl.spec import ModelSpec

HALF = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
Entry = tuple[str, str, str, str, tuple[str, ...]]
# name, data, backbone, weights, further options
ENTRIES: tuple[Entry, ...] = (
    ("mobilenet_v2 (torchvision)", "grocery20", "mobilenet_v2", "mobilenet_v2_tv.safetensors", ()),
    ("mobilenet_v2 at 128", "grocery20", "mobilenet_v2", "mobilenet_v2_tv.safetensors", ("--size", "128")),
    ("mobilenet_v2 (TensorFlow)", "grocery20", "zoo:mobilenet_v2_tf", "default", HALF),
    ("resnet20", "cifar10_jpeg", "zoo:resnet20_cifar", "default", ("--size", "32", "--batchnorm", "train")),
)


def edgetl(kit: Path, *arguments: str) -> None:
    """Runs a command in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(kit), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-m", "edgetl.cli.main", *arguments], check=True, env=environment)


def work_of(network: torch.nn.Module, spec: ModelSpec) -> tuple[int, int]:
    """Returns parameters and multiply-adds, for one picture, of the whole network."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, *spec.preprocess.input_shape, dtype=torch.uint8))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


def prepare(kit: Path, work: Path, entry: Entry, quick: bool) -> None:
    """Trains and exports, unless that was done."""
    _, data, backbone, weights, options = entry
    run, bundle = work / "run", work / "model.edgetl"
    file = weights if weights == "default" else str(kit / "weights" / weights)
    short = ("--epochs", "1", "--size", "64", "--strategy", "probe") if quick else ()
    if not (run / "metrics.json").exists():
        going_on = ("--resume",) if run.exists() else ()
        edgetl(
            kit, "finetune", str(kit / data), "--backbone", backbone, "--weights", file, "--out", str(run),
            *options, *short, *going_on,
        )  # fmt: skip
    cheap = ("--max-drop", "100pt", "--method", "mse", "--no-repair", "--no-mixed") if quick else ("--max-drop", "5pt")
    if not bundle.exists():
        edgetl(kit, "export", str(run), "--int8", "--out", str(bundle), *cheap)


def measure(kit: Path, work: Path, entry: Entry, quick: bool) -> dict[str, Any]:
    """Returns one row."""
    name, data, backbone, _, _ = entry
    run, bundle, result = work / "run", work / "model.edgetl", work / "bench.json"
    prepare(kit, work, entry, quick)
    edgetl(kit, "bench", str(bundle), "--seconds", "0.3" if quick else "5", "--json", str(result))
    variants = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["variants"]
    timed = {e["variant"]: e for e in json.loads(result.read_text(encoding="utf-8"))["results"] if e["latency_ms"]}
    network, spec = load_network(run / "checkpoint.safetensors")
    parameters, multiply_adds = work_of(network, spec)
    return {
        "name": "trained",
        "entry": name,
        "data": data,
        "backbone": backbone,
        "size": list(spec.preprocess.size),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "top1": {v["name"]: v["metrics"]["top1"] for v in variants},
        "bytes": {v["name"]: v["bytes"] for v in variants},
        "p50_ms": {variant: e["latency_ms"]["p50"] for variant, e in timed.items()},
    }


def time_recipe(name: str, work: Path, quick: bool) -> dict[str, Any]:
    """Returns the size, the work and the latency of a recipe's network."""
    config = FinetuneConfig(**open_recipe(name).settings)
    classes = tuple(f"class{i}" for i in range(100 if name.endswith("cifar100") else 10))
    pretrained = load_pretrained(config.backbone, "none", size=(64, 64) if quick else config.size)
    network, spec = new_network(pretrained, classes, head=config.head)
    pictures = np.random.default_rng(0).integers(0, 256, (4, *spec.preprocess.input_shape), np.uint8)
    root = work / "model.edgetl"
    parameters, multiply_adds = work_of(network, spec)
    write_timed_bundle(network, spec, [pictures], root)
    timing = BenchConfig(seconds=0.2 if quick else 2.0, variants=("fp32", f"int8-{host.arch()}"))
    result = bench([Contender(name, root, None)], timing, on_progress=lambda *_: None)
    return {
        "name": "recipe",
        "recipe": name,
        "size": list(spec.preprocess.size),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "bytes": {entry.variant: entry.bytes for entry in result.entries},
        "p50_ms": {
            entry.variant: latency["p50"] for entry in result.entries if (latency := latency_ms(entry.samples_ns))
        },
    }


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, help="where runs and bundles are kept")
    parser.add_argument("--prepare", action="store_true", help="make them, and time nothing")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.prepare and arguments.work is None:
        parser.error("--prepare needs --work DIR: what is made must lie somewhere")
    kit, rows = kit_folder(parser, "grocery20/, cifar10_jpeg/ and weights/"), []
    sys.path.insert(0, str(kit))  # zoo.py
    for number, entry in enumerate(ENTRIES[-1:] if arguments.quick else ENTRIES):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) if arguments.work is None else arguments.work / f"entry{number}"
            place.mkdir(parents=True, exist_ok=True)
            if arguments.prepare:
                prepare(kit, place, entry, arguments.quick)
                continue
            rows.append(measure(kit, place, entry, arguments.quick))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.prepare:
        return
    for name in ("edge",) if arguments.quick else recipe_names():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(time_recipe(name, Path(folder), arguments.quick))
        print(json.dumps(rows[-1]), flush=True)
    native = f"int8-{host.arch()}"
    checks = [
        check(f"zoo, {row['entry']}: top-1 of {native} below FP32's", row["top1"]["fp32"] - row["top1"][native], 0.05)
        for row in rows
        if row["name"] == "trained"
    ]
    result = {"format_version": 1, "quick": arguments.quick, "host": host.facts(), "rows": rows, "checks": checks}
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
