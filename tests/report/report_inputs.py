"""Results, runs and exports as the commands write them, made from random numbers."""

from __future__ import annotations

import numpy as np

from edgetl.bench import Entry, Result, fidelity_report
from edgetl.bench.compare import Comparison
from edgetl.bench.conditions import Conditions
from edgetl.metrics import classification_report

HOST = {
    "cpu": "Test Processor", "cores": 4, "arch": "x86", "int8_dot": True, "memory_bytes": 8_000_000_000,
    "available_bytes": None, "governor": "performance", "load_1m": 0.5, "gpus": [], "board": None, "system": "Linux",
    "versions": {"python": "3.11.0", "numpy": "2.0"}, "mhz": 3000.0, "celsius": 41.5, "jetson": None,
    "machine": "m" * 16,
}  # fmt: skip
STAGES = {"decode": [400_000], "preprocess": [100_000], "infer": [900_000, 1_100_000], "postprocess": [50_000]}
COLD = {"import_ms": 30.0, "load_ms": 200.0, "first_ms": 4.0, "peak_bytes": 80_000_000, "gpu_bytes": None}
METER = {
    "meter": "rails VDD_IN", "joules": 9.0, "idle_watts": 2.5, "seconds": 2.0, "count": 500, "samples": 200,
    "problem": None, "joules_each": 0.008,
}  # fmt: skip


def decisions(labels, pictures=60, *, noise=0.7, paths=(), seed=0):
    """What a model and its quantized form answer: a fidelity report and a classification report."""
    rng = np.random.default_rng(seed)
    true = np.arange(pictures) % len(labels)
    logits = rng.normal(0, 1, (pictures, len(labels))).astype(np.float32)
    logits[np.arange(pictures), true] += 3
    now = logits + rng.normal(0, noise, logits.shape).astype(np.float32)
    names = [str(paths[i % len(paths)]) if paths else f"/data/{i:04}.png" for i in range(pictures)]
    return fidelity_report(now, logits, true, labels, names), classification_report(now, true, labels)


def samples(calls=200, processes=3, ms=1.0, seed=0):
    """Nanoseconds of each call, by process, with a tail."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(30, ms / 30, (processes, calls)) * 1e6).astype(int).tolist()


def entry(bundle="parts.edgetl", variant="fp32", *, ms=1.0, report=None, **fields):
    """One entry as JSON; ``ms`` of None is a variant that this machine does not run."""
    report = {} if report is None else report
    top1 = report.get("classification", {}).get("top1")
    flips = report.get("fidelity", {}).get("flip_rate")
    found = {
        "digest": "d" * 64,
        "engine": "" if ms is None else "cpu",
        "samples_ns": [] if ms is None else samples(ms=ms),
        "bytes": 1_200_000,
        "accuracy": {"top1": top1, "macro_f1": top1, "flip_rate": flips},
        **fields,
    }
    return Entry(bundle=bundle, variant=variant, report=report, **found).to_dict()


def result(entries, *, device="local", host=None, conditions=None, data=(), **settings):
    """A whole result as JSON."""
    told = {
        "variants": [], "engines": ["auto"], "processes": 3, "seconds": 2.0, "threads": 1, "fps": None, "batches": [],
        "energy": False, "data": list(data), **settings,
    }  # fmt: skip
    whole = Result({**HOST, **(host or {})}, told, [], conditions or Conditions(), "2026-01-02T03:04:05+00:00", device)
    return {**whole.to_dict(), "results": list(entries)}


def data_of(*bundles, source="/data/parts", digest="e" * 64):
    """What a result says of the pictures that bundles were judged on."""
    return [{"bundle": bundle, "source": source, "digest": digest, "split": "val"} for bundle in bundles]


def rich_result(labels=("bolt", "nut", "screw"), bundle="parts.edgetl", paths=(), *, pictures=60, calls=200):
    """A result with everything that a benchmark can measure."""
    fp32 = decisions(labels, pictures, noise=0.0)
    int8 = decisions(labels, pictures, noise=2.0, paths=paths)
    more = {"cold_start": COLD, "stages_ns": STAGES, "energy": [METER], "batches_ns": {1: [10**6], 8: [4 * 10**6]}}
    paced = {"fps": 30.0, "samples_ns": samples(30, 1, 1.5)[0], "late": 2}
    entries = [
        entry(bundle, report=_report(fp32), samples_ns=samples(calls), paced=paced, **more),
        entry(
            bundle, "int8-x86", report=_report(int8), samples_ns=samples(calls, ms=0.5), bytes=310_000,
            comparison=Comparison(0.5, 0.45, 0.55, 1e-4, 3), **more,
        ),
        entry(bundle, "fp16", ms=None, report=_report(fp32), notes=("latency: FP16 is for GPUs",)),
    ]  # fmt: skip
    return result(entries, data=data_of(bundle))


def _report(pair):
    return {"fidelity": pair[0], "classification": pair[1]}


def history(stages=(("probe", 6), ("tune", 3))):
    """Rows of history.csv as text, with the closing one."""
    rows = []
    for stage, epochs in stages:
        for epoch in range(1, epochs + 1):
            loss = 1.0 / (len(rows) + 1)
            rows.append(
                {"stage": stage, "epoch": str(epoch), "lr": "0.001", "train_loss": str(loss), "val_loss": str(loss),
                 "val_top1": str(1 - loss)}
            )  # fmt: skip
    return [*rows, {"stage": "final", "epoch": "3", "lr": "", "train_loss": "", "val_loss": "", "val_top1": "0.9"}]


def metrics(labels=("bolt", "nut", "screw"), bad=()):
    """metrics.json of a run."""
    audit = {"pictures": 120, "bad": list(bad), "notes": []}
    return {
        "format_version": 1, "checkpoint_sha256": "c" * 64, "strategy": "lp-ft", "kept_row": 9,
        "dataset": {"source": "/data/parts", "digest": "e" * 64, "audit": audit}, "val": decisions(labels)[1],
    }  # fmt: skip


CONFIG = {"backbone": "small_cnn", "weights": "none", "epochs": 3, "lr": None, "size": None, "seed": 0}


def manifest(labels=("bolt", "nut", "screw"), fidelity=None):
    """The manifest of a bundle with FP32 and one INT8 form."""
    fidelity = {"int8-x86": decisions(labels)[0]} if fidelity is None else fidelity
    figures = {"top1": 0.9, "macro_f1": 0.9, "flip_rate": 0.0, "top1_drop": 0.0, "sqnr_db": 300.0, "latency_ratio": 1.0}
    worse = {
        "top1": 0.88,
        "macro_f1": 0.88,
        "flip_rate": 0.03,
        "top1_drop": 0.02,
        "sqnr_db": 24.2,
        "latency_ratio": 0.5,
    }
    common = {"target": "any", "sha256": "f" * 64, "precision": "fp32"}
    return {
        "digest": "a" * 64,
        "spec": {"backbone": "small_cnn", "labels": list(labels), "preprocess": {"size": [32, 32], "mode": "squash"}},
        "variants": [
            {"name": "fp32", "file": "m.onnx", "bytes": 1_200_000, "recommended": True, "reason": "the reference",
             "metrics": figures, **common},
            {"name": "int8-x86", "file": "i.onnx", "bytes": 310_000, "recommended": False,
             "reason": "loses 2.00 points of top-1", "metrics": worse, **common},
            {"name": "int8-arm", "file": "i.onnx", "bytes": 310_000, "recommended": None, "reason": "",
             "metrics": {}, **common},
        ],
        "provenance": {"edgetl": "0.1.0", "max_drop": 0.01, "int8": {"method": "auto"}, "versions": {"onnx": "1"}},
        "proof": {"val_pictures": 60, "fp32": decisions(labels)[1], "fidelity": fidelity},
    }  # fmt: skip


def layers(number=5):
    """What INT8 costs layers, one of them kept in float."""
    return [
        {
            "name": f"/layer{i}/Conv", "op": "Conv", "weight": "w", "shape": [8, 8, 3, 3], "alone_db": 20.0 + i,
            "multiply_adds": 0.1, "in_float": {"tensorrt": "for its cost"} if i == 0 else {},
        }
        for i in range(number)
    ]  # fmt: skip
