"""Whether anything that a device is given can bring the runtime down: manifests, bundles and pictures, mutated.

    python benchmarks/fuzz.py [--quick] [--only KIND]... --json FILE

10,000 seeded inputs of each kind go to the public functions in child processes that may use 6 GiB and 20 seconds for
each input: ``manifests`` (values, fields and bytes of manifest.json, with the digest that belongs to them or not),
``bundles`` (graph, exemplars, overlay and signature, mostly with hashes that fit, and files replaced by links, pipes
and folders), ``pictures`` (JPEG, PNG, BMP, WebP, TIFF, GIF and PPM, damaged, and random bytes). An input is taken or
refused by an error of edgetl's; a crash, a hang, any other exception, and a file touched outside the child's own
folder are findings, each told with the seed that makes it again. ``--quick`` feeds 150 of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rows import check, say

from edgetl import host
from edgetl.artifacts import write_json
from edgetl.bundle import EXEMPLARS, Variant, open_bundle, write_manifest
from edgetl.runtime.overlay import write_overlay
from edgetl.signing import make_keys, sign_bundle
from edgetl.spec import ModelSpec, PreprocessSpec

KINDS = ("manifests", "bundles", "pictures")
COUNT, QUICK = 10_000, 150
PART = 500  # inputs of one process
LIMIT_S = 20.0  # for one input; a process that starts gets more
KEPT = 20  # findings of each sort that are told in full
LABELS = ("blue", "green", "red")


def small_graph() -> bytes:
    """Returns a classifier of mean colours: small, so that every mutation hits something."""
    nodes = [
        helper.make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "kernel"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["seen"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=1),
    ]
    weights = {"weight": 0.02 * np.eye(3)[::-1], "bias": np.array([0.5, 0, 0.25]), "kernel": np.zeros((3, 3, 3, 3))}
    weights["kernel"][[0, 1, 2], [0, 1, 2], 1, 1] = 1
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("logits", "embedding")],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def sound_bundle(work: Path) -> dict[str, str]:
    """Writes a signed bundle with exemplars, an overlay, and the key; returns where they are."""
    root = work / "sound.edgetl"
    root.mkdir()
    graph, variants = small_graph(), []
    for name, precision, target in (("fp32", "fp32", "any"), (f"int8-{host.arch()}", "int8", host.arch())):
        (root / f"model.{name}.onnx").write_bytes(graph)
        sha256 = hashlib.sha256(graph).hexdigest()
        variants.append(
            Variant(name, precision, target, f"model.{name}.onnx", sha256, len(graph), True, "made", {"top1": 0.9})
        )
    colors = np.repeat(255 * np.eye(3)[::-1], 4, axis=0) + np.random.default_rng(0).normal(0, 9, (12, 3))
    np.save(root / EXEMPLARS, colors.astype(np.float16))
    (root / "calibration.json").write_text("{}")
    spec = ModelSpec("small", PreprocessSpec(size=(16, 16), resize_to=16), LABELS)
    write_manifest(root, spec, variants, provenance={"edgetl": "0.1.0"}, proof={"val": 3}, exemplars=[4, 4, 4])
    public = make_keys(work / "key")
    bundle = open_bundle(root)
    sign_bundle(bundle, work / "key")
    overlay = work / "overlay.json"
    write_overlay(overlay, bundle.digest, {"white": np.full((2, 3), 250, np.float32)}, None)
    return {"bundle": str(root), "overlay": str(overlay), "key": str(public)}


def sentinel_of(work: Path) -> Path:
    """Makes a folder that nothing may touch, beside that of the children."""
    folder = work / "sentinel"
    (folder / "deeper").mkdir(parents=True)
    for name in ("secret.txt", "deeper/model.fp32.onnx"):
        (folder / name).write_text("not yours\n")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Returns what a folder holds: mode, time of change and hash by path."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (stat.st_mode, stat.st_mtime_ns, content)
    return found


def child(kind: str, start: int, stop: int, told: dict[str, str]) -> subprocess.Popen[str]:
    scratch = Path(told["scratch"])
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    home = {name: str(scratch) for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    command = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), kind, str(start), str(stop)]
    with Path(told["stderr"]).open("w", encoding="utf-8") as stderr:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, bufsize=1,
            env={**os.environ, **home, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(told))
    process.stdin.close()
    return process


def run_part(kind: str, start: int, stop: int, told: dict[str, str], found: dict[str, Any]) -> int:
    """Feeds inputs to one process; returns the seed to go on with, after the one that brought it down if need be."""
    process, at = child(kind, start, stop, told), start
    assert process.stdout is not None
    with process:
        while True:
            limit = LIMIT_S if at > start else LIMIT_S + 60
            if not select.select([process.stdout], [], [], limit)[0]:
                process.kill()
                found["hangs"].append({"seed": at})
                return at + 1
            line = process.stdout.readline()
            if not line:
                break
            name, _, rest = line.partition(" ")
            if name == "at":
                at = int(rest)
            elif name == "finding":
                found["findings"].append(json.loads(rest))
            elif name == "was":
                found["answers"][rest.strip()] += 1
            else:
                return stop
        process.wait()
    said = Path(told["stderr"]).read_text(encoding="utf-8", errors="replace")[-1000:]
    found["crashes"].append({"seed": at, "exit": process.returncode, "said": said})
    return at + 1


def fuzz(kind: str, count: int, told: dict[str, str]) -> dict[str, Any]:
    """Returns the row of one kind."""
    found: dict[str, Any] = {"hangs": [], "crashes": [], "findings": [], "answers": Counter()}
    before, begun, at = snapshot(Path(told["sentinel"])), time.monotonic(), 0
    while at < count:
        at = run_part(kind, at, min(at - at % PART + PART, count), told, found)
    touched = [finding for finding in found["findings"] if finding["sort"] == "touched"]
    other = [finding for finding in found["findings"] if finding["sort"] == "exception"]
    if snapshot(Path(told["sentinel"])) != before:
        touched.append({"sort": "touched", "path": "the sentinel's folder is another"})
    return {
        "name": kind,
        "inputs": count,
        "answers": dict(sorted(found["answers"].items())),
        "seconds": time.monotonic() - begun,
        "counts": {
            "crashes": len(found["crashes"]),
            "hangs": len(found["hangs"]),
            "exceptions without a name": len(other),
            "files touched outside": len(touched),
        },
        "crashes": found["crashes"][:KEPT],
        "hangs": found["hangs"][:KEPT],
        "exceptions": other[:KEPT],
        "touched": touched[:KEPT],
    }


def checks_of(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        found.append(check(f"{row['name']}: inputs", row["inputs"], count, at_least=True))
        found += [check(f"{row['name']}: {name}", value, 0) for name, value in row["counts"].items()]
    return found


def main() -> None:
    """Fuzzes and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=KINDS, help="repeatable")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    count, facts = QUICK if arguments.quick else COUNT, host.facts()
    work = Path(tempfile.mkdtemp()).resolve()
    rows = []
    try:
        told = {**sound_bundle(work), "sentinel": str(sentinel_of(work)), "scratch": str(work / "scratch")}
        told["stderr"] = str(work / "stderr")
        for kind in arguments.only or KINDS:
            rows.append(fuzz(kind, count, told))
            print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(work)
    checks = checks_of(rows, count)
    write_json(
        arguments.json,
        {"format_version": 1, "quick": arguments.quick, "host": facts, "rows": rows, "checks": checks},
    )
    say(checks)


if __name__ == "__main__":
    main()
