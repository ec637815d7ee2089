"""INT8 calibration beside its peers: quality, cost, and the x86 form's speed.

    EDGETL_KIT=... python benchmarks/ptq.py --peers VENV/bin/python [--quick] --json FILE

``VENV`` holds benchmarks/requirements-peers.txt (ModelOpt wants other versions than edgetl). Every side runs in a fresh
process. Quality: TensorRT semantics by fake-quant, calibrated on one half of the pictures and judged on the other, both
ways, pooled. Cost: on 500 pictures, one process after the other; edgetl decodes them itself, peers get them decoded.
``--quick`` takes 16 pictures of one network, and of the peers only what edgetl itself has: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rows import check, kit_folder, say

from edgetl import host
from edgetl.artifacts import write_json
from edgetl.bench import drop_interval
from edgetl.metrics import flip_rate, sqnr_db, top1

HERE = Path(__file__).parent
WORKER, PEER = HERE / "ptq_worker.py", HERE / "peer.py"
SOURCES = {"mobilenet_v2_tf": "imagenet", "mobilenet_v2_tv": "imagenet", "resnet20_cifar10": "cifar10_jpeg:val"}
BACKBONES = ("mobilenet_v2", "resnet18", "mobilenet_v3_large", "efficientnet_b0")
ROUNDS = 3
METHODS = ("max", "percentile", "mse", "entropy")
PEERS = (
    ("onnxruntime", "minmax"),
    ("onnxruntime", "entropy"),
    ("onnxruntime", "percentile"),
    ("modelopt", "max"),
    ("modelopt", "entropy"),
)
# ONNX Runtime's histograms hold the activations of all pictures: 16 GB at 256.
HISTOGRAM_PICTURES = 128


class Bench:
    """Runs jobs in a folder.

    Args:
        work: Where files go.
        peers: Python of the peers' environment.
        quick: Whether few pictures will do.
    """

    def __init__(self, work: Path, peers: Path, *, quick: bool) -> None:
        self.work = work
        self.peers = peers
        self.quick = quick
        self.tools = PEERS[:1] if quick else PEERS
        self.methods = METHODS[:1] if quick else METHODS

    def job(self, *arguments: object, threads: int = 1) -> None:
        """Runs a job of the worker."""
        self._run([sys.executable, WORKER, *arguments], threads)

    def peer(
        self, tool: str, method: str, model: Path, pictures: Path, out: Path, target: str, threads: int = 1
    ) -> dict[str, Any]:
        """Lets a peer quantize, and returns its report."""
        report = out.with_suffix(".json")
        self._run([self.peers, PEER, tool, method, model, pictures, out, "--json", report, "--target", target], threads)
        return json.loads(report.read_text(encoding="utf-8"))

    def _run(self, command: Sequence[object], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")

    def network(self, name: str) -> Path:
        """Exports a network once."""
        path = self.work / f"{name}.onnx"
        if not path.exists():
            self.job("network", name, path, threads=2)
        return path

    def pictures(self, model: Path, source: str, count: int) -> Path:
        """Preprocesses pictures as a network wants them."""
        path = self.work / f"{model.stem}.{source.replace(':', '-')}.npy"
        if not path.exists():
            self.job("pictures", source, count, path, model.with_suffix(".spec.json"))
        return path


def halves(pictures: Path) -> list[tuple[Path, Path]]:
    """Writes every other picture to one of two files, and returns (to calibrate on, to judge on) both ways."""
    values, labels = np.load(pictures), np.load(pictures.with_suffix(".labels.npy"))
    parts = []
    for start in (0, 1):
        part = pictures.with_name(f"{pictures.stem}.{start}.npy")
        np.save(part, values[start::2])
        np.save(part.with_suffix(".labels.npy"), labels[start::2])
        parts.append(part)
    return [(parts[0], parts[1]), (parts[1], parts[0])]


def few(pictures: Path, count: int) -> Path:
    """Writes the first pictures to a file of their own."""
    path = pictures.with_name(f"{pictures.stem}.first{count}.npy")
    if not path.exists():
        np.save(path, np.load(pictures, mmap_mode="r")[:count])
    return path


def answers_of_fold(bench: Bench, model: Path, number: int, learned: Path, judged: Path) -> dict[str, np.ndarray]:
    """Quantizes by every tool on one half, and returns logits on the other."""
    folder = bench.work / f"{model.stem}.{number}"
    folder.mkdir(exist_ok=True)
    graphs = {"fp32": model}
    for method in bench.methods:
        graphs[f"edgetl {method}"] = folder / f"edgetl.{method}.onnx"
        bench.job("threshold", method, model, learned, graphs[f"edgetl {method}"])
    bench.job("forms", model, learned, folder)
    graphs["edgetl default, all INT8"] = folder / "tensorrt.whole.onnx"
    graphs["edgetl default"] = folder / "tensorrt.onnx"
    for tool, method in bench.tools:
        histogram = tool == "onnxruntime" and method != "minmax"
        pictures = few(learned, HISTOGRAM_PICTURES) if histogram else learned
        graphs[f"{tool} {method}"] = folder / f"{tool}.{method}.onnx"
        bench.peer(tool, method, model, pictures, graphs[f"{tool} {method}"], "tensorrt")
    found = {}
    for side, path in graphs.items():
        out = folder / f"{side}.npy"
        bench.job("judge", path, judged, out, model.with_suffix(".spec.json"))
        found[side] = np.load(out)
    return found


def quality_rows(bench: Bench, name: str) -> list[dict[str, Any]]:
    """Returns a row for each tool and method, pooled over both halves."""
    model = bench.network(name)
    folds = halves(bench.pictures(model, SOURCES[name], 16 if bench.quick else 10_000))
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(answers_of_fold, bench, model, i, *fold) for i, fold in enumerate(folds)]
        found = [job.result() for job in jobs]
    labels = np.concatenate([np.load(judged.with_suffix(".labels.npy")) for _, judged in folds])
    pooled = {side: np.concatenate([part[side] for part in found]) for side in found[0]}
    decided = [json.loads((bench.work / f"{name}.{i}" / "calibration.json").read_text()) for i in range(2)]
    rows = []
    for side, logits in pooled.items():
        low, high = drop_interval(logits, pooled["fp32"], labels)
        row = {
            "name": "quality",
            "network": name,
            "side": side,
            "pictures": len(labels),
            "top1": top1(logits, labels),
            "top1_drop": top1(pooled["fp32"], labels) - top1(logits, labels),
            "top1_drop_interval": [low, high],
            "agreement": 1 - flip_rate(logits, pooled["fp32"]),
            "sqnr_db": sqnr_db(logits, pooled["fp32"]),
        }
        if side == "edgetl default":
            row["int8_share"] = min(part["int8_share"] for part in decided)
            row["spared"] = [part["decisions"]["spared"].get("tensorrt", []) for part in decided]
        rows.append(row)
    return rows


def cost_rows(bench: Bench) -> list[dict[str, Any]]:
    """Returns time and memory of calibration on all pictures, each right behind a plain pass over them, in rounds."""
    model = bench.network("resnet20_cifar10" if bench.quick else "mobilenet_v2_tf")
    count, small = (16, 8) if bench.quick else (500, 64)
    rows = []

    def run(side: str, pictures: int, *job: object) -> None:
        out = bench.work / f"cost.{len(rows)}.json"
        bench.job(*job, model, pictures, out, threads=2)
        rows.append({"name": "cost", "side": side, "pictures": pictures, **json.loads(out.read_text())})

    for _ in range(1 if bench.quick else ROUNDS):
        for method in bench.methods:
            run("plain pass", count, "plain")
            run(f"edgetl {method}", count, "method", method)
            run(f"edgetl {method}", small, "method", method)
    run("edgetl default", small if bench.quick else count, "method", "default")
    pictures = bench.pictures(model, "imagenet", count)
    for tool, method in bench.tools:
        histogram = tool == "onnxruntime" and method != "minmax"
        given = few(pictures, HISTOGRAM_PICTURES) if histogram else pictures
        report = bench.peer(
            tool, method, model, given, bench.work / f"cost.{tool}.{method}.onnx", "tensorrt", threads=2
        )
        rows.append(
            {
                "name": "cost",
                "side": f"{tool} {method}",
                **{k: report[k] for k in ("pictures", "seconds", "peak_bytes")},
            }
        )
    return rows


def x86_rows(bench: Bench) -> list[dict[str, Any]]:
    """Returns the x86 form's latency over ONNX Runtime's own U8S8, and how often each agrees with FP32."""
    rows = []
    for name in BACKBONES[:1] if bench.quick else BACKBONES:
        model = bench.network(name)
        learned = bench.pictures(model, "grocery20:train", 8 if bench.quick else 200)
        judged = bench.pictures(model, "grocery20:val", 8 if bench.quick else 320)
        folder = bench.work / f"{name}.x86"
        folder.mkdir(exist_ok=True)
        bench.job("forms", model, learned, folder, threads=2)
        sides = {"fp32": model, "edgetl": folder / "x86.onnx", "onnxruntime": folder / "ort.onnx"}
        bench.peer("onnxruntime", "minmax", model, learned, sides["onnxruntime"], "x86")
        spec = model.with_suffix(".spec.json")
        logits = {}
        for side, path in sides.items():
            bench.job("judge", path, judged, folder / f"{side}.npy", spec, "fused")
            logits[side] = np.load(folder / f"{side}.npy")
        row: dict[str, Any] = {"name": "x86", "network": name}
        for other in ("fp32", "onnxruntime"):
            row[f"latency_over_{other}"] = ratio(bench, spec, sides["edgetl"], sides[other], folder)
        row["onnxruntime_latency_over_fp32"] = ratio(bench, spec, sides["onnxruntime"], sides["fp32"], folder)
        for side in list(sides)[1:]:
            row[f"{side}_agreement"] = 1 - flip_rate(logits[side], logits["fp32"])
            row[f"{side}_sqnr_db"] = sqnr_db(logits[side], logits["fp32"])
        row["spared"] = len(json.loads((folder / "calibration.json").read_text())["decisions"]["spared"].get("x86", ()))
        rows.append(row)
    return rows


def ratio(bench: Bench, spec: Path, first: Path, second: Path, folder: Path) -> float:
    """Returns the median ratio of two latencies, call by call in turn, over three processes."""
    ratios = []
    for number in range(1 if bench.quick else 3):
        out = folder / f"latency.{number}.json"
        bench.job("latency", 0.5 if bench.quick else 10, out, spec, first, second)
        one, other = (np.array(samples, float) for samples in json.loads(out.read_text()))
        ratios.append(float(np.median(one / other)))
    return statistics.median(ratios)


def cost_checks(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Compares each method with the plain pass before it, and memory at few pictures with memory at many."""
    checks = []
    for method in methods:
        at = [i for i, row in enumerate(rows) if row["side"] == f"edgetl {method}"][::2]
        rounds = [rows[i - 1 : i + 2] for i in at]  # plain, many pictures, few
        for name, value, limit in (
            (
                "time / plain pass",
                statistics.median(many["seconds"] / plain["seconds"] for plain, many, _ in rounds),
                2,
            ),
            ("memory / plain pass", _memory(rounds, 1) / _memory(rounds, 0), 2),
            (
                f"memory at {rounds[0][1]['pictures']} / at {rounds[0][2]['pictures']} pictures",
                _memory(rounds, 1) / _memory(rounds, 2),
                1.05,
            ),
        ):
            checks.append(check(f"{method}: {name}", value, limit, at_least=False))
    return checks


def _memory(rounds: Sequence[Sequence[dict[str, Any]]], which: int) -> float:
    return statistics.median(row[which]["peak_bytes"] for row in rounds)


def quality_checks(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares with fixed limits on the hard network, with the best peer on the others."""
    by_side = {row["side"]: row for row in rows}
    whole, mixed = by_side["edgetl default, all INT8"], by_side["edgetl default"]
    if name == "mobilenet_v2_tf":
        low = whole["top1_drop_interval"][0]
        drop = check(f"{name}, all INT8: top-1 drop", whole["top1_drop"], 0.005, at_least=False)
        if not drop["ok"]:  # unless chance may have made it
            drop = check(f"{name}, all INT8: top-1 drop, lower end of its 95 % interval", low, 0, at_least=False)
        return [
            check(f"{name}, all INT8: agreement", whole["agreement"], 0.95, at_least=True),
            check(f"{name}, all INT8: SQNR, dB", whole["sqnr_db"], 15, at_least=True),
            drop,
            check(f"{name}, mixed: agreement", mixed["agreement"], 0.98, at_least=True),
            check(f"{name}, mixed: SQNR, dB", mixed["sqnr_db"], 20, at_least=True),
            check(f"{name}, mixed: multiply-adds in INT8", mixed["int8_share"], 0.85, at_least=True),
        ]
    peers = [row for row in rows if not row["side"].startswith(("edgetl", "fp32"))]
    error = float(np.sqrt(whole["top1"] * (1 - whole["top1"]) / whole["pictures"]))
    best = {key: max(row[key] for row in peers) for key in ("agreement", "sqnr_db", "top1")}
    return [
        check(f"{name}, all INT8: agreement", whole["agreement"], best["agreement"] - 0.004, at_least=True),
        check(f"{name}, all INT8: SQNR, dB", whole["sqnr_db"], best["sqnr_db"] - 0.2, at_least=True),
        check(f"{name}, all INT8: top-1", whole["top1"], best["top1"] - error, at_least=True),
    ]


def x86_checks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares speed and agreement with ONNX Runtime's own form."""
    checks = []
    for row in rows:
        name, speed = row["network"], row["latency_over_onnxruntime"]
        checks += [
            check(f"{name}, x86: latency / onnxruntime's U8S8", speed, 1.03, at_least=False),
            check(f"{name}, x86: agreement", row["edgetl_agreement"], row["onnxruntime_agreement"], at_least=True),
        ]
    return checks


def measure(bench: Bench) -> dict[str, Any]:
    """Runs everything and returns the result."""
    rows, checks = cost_rows(bench), []
    checks += cost_checks(rows, bench.methods)
    for name in list(SOURCES)[2:] if bench.quick else SOURCES:
        found = quality_rows(bench, name)
        checks += quality_checks(name, found)
        rows += found
    found = x86_rows(bench)
    checks += x86_checks(found)
    return {"format_version": 1, "quick": bench.quick, "host": host.facts(), "rows": rows + found, "checks": checks}


def main() -> None:
    """Parses the command line, measures, writes, and says what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="prove that the script runs")
    parser.add_argument("--peers", type=Path, help="python of an environment with requirements-peers.txt")
    parser.add_argument("--work", type=Path, help="folder for graphs and pictures  [default: a temporary one]")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    kit_folder(parser, "imagenet_sample/, grocery20/, cifar10_jpeg/ and weights/")
    if options.peers is None and not options.quick:
        parser.error("--peers must name the peers' python; --quick goes with edgetl's own")
    with tempfile.TemporaryDirectory() as work:
        folder = options.work or Path(work)
        folder.mkdir(exist_ok=True)
        result = measure(Bench(folder, options.peers or Path(sys.executable), quick=options.quick))
    write_json(options.json, result)
    say(result["checks"])


if __name__ == "__main__":
    main()
