"""The runtime against what people write, on pictures as cameras make them; under many threads; models exchanged.

    EDGETL_KIT=... python benchmarks/runtime.py [--quick] [--only PART]... --json FILE

Parts: ``classify`` (one JPEG of 1280 x 960 after another: against the loop that people write, and against the best
script we could write by hand for exactly this work), ``cold`` (import, load, first answer, each in a fresh process),
``memory`` (peak of a fresh process), ``submit`` (32 threads), ``deadline`` (twice the load that can be served),
``soak`` (ten minutes at full load, another model every five seconds). Each row is saved as it ends. ``--quick`` makes
everything small: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rows import Rows, check, kit_folder
from runtime_worker import CLIENTS, SIDES

import edgetl

PARTS = ("classify", "cold", "memory", "submit", "deadline", "soak")
WIDTH, HEIGHT, QUALITY = 1280, 960, 90
PAIRS = 5  # of fresh processes


def run_child(kind: str, job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Returns what a fresh process found, and the seconds of its whole life."""
    command = [sys.executable, str(Path(__file__).with_name("runtime_worker.py")), kind]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1]), seconds


def enlarged(folder: Path, source: Path, quick: bool) -> tuple[list[tuple[str, str]], float]:
    """Writes the kit's validation pictures at 1280 x 960; returns (path, label) of each, and the mean of bytes."""
    found, sizes = [], []
    for place in sorted((source / "val").iterdir()):
        for path in sorted(place.iterdir())[: 2 if quick else None]:
            target = folder / f"{place.name}-{path.stem}.jpg"
            with Image.open(path) as image:
                upright = image.convert("RGB")
                size = (WIDTH, HEIGHT) if upright.width >= upright.height else (HEIGHT, WIDTH)
                upright.resize(size, Image.Resampling.BICUBIC).save(target, quality=QUALITY)
            found.append((str(target), place.name))
            sizes.append(target.stat().st_size)
    return found, float(np.mean(sizes))


def edgetl_command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "edgetl.cli.main", *arguments], check=True, stdout=subprocess.DEVNULL)


def prepared(kit: Path, work: Path, quick: bool) -> dict[str, Any]:
    """Trains, exports, and describes the network for all sides: it is the same one, in three forms."""
    import torch

    from edgetl.backbones import load_network
    from edgetl.bundle import open_bundle
    from edgetl.runtime.loading import choose_variant

    run, bundle = work / "run", work / "grocery.edgetl"
    cheap = ("--max-drop", "100pt", "--method", "mse", "--no-repair", "--no-mixed") if quick else ("--max-drop", "3pt")
    edgetl_command(
        "finetune", str(kit / "grocery20"), "--backbone", "mobilenet_v2", "--out", str(run), "--strategy", "probe",
        "--weights", str(kit / "weights" / "mobilenet_v2_tv.safetensors"),
        *(("--epochs", "1", "--size", "64") if quick else ()),
    )  # fmt: skip
    edgetl_command("export", str(run), "--int8", "--out", str(bundle), *cheap)
    network, spec = load_network(run / "checkpoint.safetensors")
    network.eval()
    compileall.compile_dir(Path(edgetl.__file__).parent, quiet=1)  # as pip does when it installs
    body = torch.nn.Sequential(network.backbone, network.head)
    plain = work / "plain.onnx"

    class Logits(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return body(pictures)[0]

    size = spec.preprocess.size[0]
    torch.onnx.export(Logits().eval(), (torch.zeros(1, 3, size, size),), str(plain), dynamo=True, external_data=False)
    opened = open_bundle(bundle)
    variant, reason = choose_variant(opened)
    print(f"    {variant.name}: {reason}", flush=True)
    return {
        "bundle": str(bundle), "variant": variant.name, "int8": str(bundle / variant.file), "plain": str(plain),
        "mean": spec.preprocess.mean, "std": spec.preprocess.std, "labels": list(spec.labels), "size": size,
        "resize_to": spec.preprocess.resize_to,
    }  # fmt: skip


def small_bundle(kit: Path, work: Path, name: str, backbone: str, size: int, labels: int = 10) -> dict[str, str]:
    """A network of random weights at a small size: what it answers matters to nobody, how fast does."""
    from edgetl.backbones import load_pretrained, new_network
    from edgetl.bundle import open_bundle
    from edgetl.runtime.loading import choose_variant
    from edgetl.selection import write_timed_bundle

    network, spec = new_network(
        load_pretrained(backbone, "none", size=(size, size)), tuple(f"{name}-{i}" for i in range(labels))
    )
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, size, size, 3), np.uint8) for _ in range(2)]
    root = work / f"{name}.edgetl"
    write_timed_bundle(network, spec, iter(pictures), root)
    return {"bundle": str(root), "variant": choose_variant(open_bundle(root))[0].name}


def measure(kit: Path, work: Path, quick: bool, part: str, shared: dict[str, Any]) -> dict[str, Any]:
    pictures = [path for path, _ in shared["pictures"]]
    job = {"paths": shared["paths"], "threads": 0, "pictures": pictures[:: max(1, len(pictures) // 40)]}
    if part == "classify":
        taken = [
            run_child("classify", {**job, "sides": list(SIDES), "seconds": 1 if quick else 20, "seed": seed})[0]
            for seed in range(1 if quick else PAIRS)
        ]
        right = run_child("accuracy", {**job, "sides": ["loop", "edgetl"], "labelled": shared["pictures"]})[0]["right"]
        return {
            "processes": taken,
            "p50_ms": {name: float(np.median([t["p50_ms"][name] for t in taken])) for name in SIDES},
            "top1": {name: float(np.mean(r)) for name, r in right.items()},
            "pictures": len(shared["pictures"]),
            "bytes_per_picture": shared["bytes_per_picture"],
        }
    if part in ("cold", "memory"):
        found: dict[str, list[float]] = {"tuned": [], "edgetl": []}
        for turn in range(2 if quick else 2 * 30):
            side = ("tuned", "edgetl")[turn % 2]
            told, seconds = run_child("first" if part == "cold" else "memory", {**job, "side": side})
            found[side].append(seconds if part == "cold" else told["peak_bytes"])
        return {name: float(np.median(values)) for name, values in found.items()}
    if part == "submit":
        rows = {}
        cases = {"mobilenet_v3_small at 64": ("mobilenet_v3_small", 64), "mobilenet_v2 at 224": ("mobilenet_v2", 224)}
        for name, (backbone, size) in cases.items():
            bundle = small_bundle(kit, work, f"submit-{backbone}", backbone, size)
            frames = work / f"frames-{size}"
            frames.mkdir()
            for i, path in enumerate(pictures[:16]):
                Image.open(path).resize((size, size)).save(frames / f"{i}.png")
            taken = [
                run_child(
                    "submit",
                    {**bundle, "threads": 1, "max_batch": 16, "workers": 2, "blocks": 1 if quick else 4, "seed": seed,
                     "seconds": 0.3 if quick else 2.0, "pictures": [str(p) for p in sorted(frames.iterdir())]},
                )[0]
                for seed in range(1 if quick else PAIRS)
            ]  # fmt: skip
            rates = {way: [t["pictures_per_s"][way] for t in taken] for way in ("call", "submit")}
            rows[name] = {
                **{way: float(np.median(values)) for way, values in rates.items()},
                "ratio": float(np.median([b / a for a, b in zip(*rates.values(), strict=True)])),
                "mean_batch": float(np.mean([t["mean_batch"] for t in taken])),
            }
        return {"networks": rows}
    if part == "deadline":
        own = {"bundle": shared["paths"]["bundle"], "variant": shared["paths"]["variant"]}
        return run_child(
            "deadline", {**own, "deadline_ms": 100, "seconds": 1 if quick else 20, "pictures": pictures[:16]}
        )[0]
    bundles = [Path(small_bundle(kit, work, f"soak-{i}", "mobilenet_v2", 96)["bundle"]) for i in range(2)]
    variant = sorted(p.stem.removeprefix("model.") for p in bundles[0].glob("model.int8-x86.onnx"))[0]
    return run_child(
        "soak",
        {"bundles": [str(b) for b in bundles], "variant": variant, "seconds": 3 if quick else 600,
         "every_s": 0.5 if quick else 5, "pictures": pictures[:16]},
    )[0]  # fmt: skip


def checks_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        if row["name"] == "classify":
            p50, top1 = row["p50_ms"], row["top1"]
            share = min(top1["loop"], 1 - 1 / row["pictures"])  # all right of so few is no certainty
            error = (share * (1 - share) / row["pictures"]) ** 0.5
            found += [
                check("classify: p50 / the loop people write", p50["edgetl"] / p50["loop"], 0.6),
                check("classify: p50 / the best script by hand", p50["edgetl"] / p50["tuned"], 1.05),
                check(
                    "classify: top-1 lost against the loop, standard errors", (top1["loop"] - top1["edgetl"]) / error, 1
                ),
            ]
        elif row["name"] == "cold":
            found.append(check("import, load, first answer / the script by hand", row["edgetl"] / row["tuned"], 1.15))
        elif row["name"] == "memory":
            found.append(check("memory / the script by hand", row["edgetl"] / row["tuned"], 1.1))
        elif row["name"] == "submit":
            rates = {name: made["ratio"] for name, made in row["networks"].items()}
            best = max(rates, key=lambda name: rates[name])
            found.append(check(f"submit / calls of {CLIENTS} threads: {best}", rates.pop(best), 1.3, at_least=True))
            found += [
                check(f"submit / calls of {CLIENTS} threads: {name}", rate, 0.97, at_least=True)
                for name, rate in rates.items()
            ]
        elif row["name"] == "deadline":
            limit = row["deadline_ms"] + row["batch_ms"]
            found.append(check("twice the load: p99 / (deadline + one batch)", row["p99_ms"] / limit, 1.0))
        else:
            found += [
                check("soak: answers lost", row["sent"] - row["answered"], 0),
                check("soak: answers of the wrong model or picture", row["wrong"], 0),
                check("soak: answers beyond those asked for", row["counted"] - row["sent"], 0),
                check("soak: memory, MiB a minute", row["slope_mib_per_min"], 1.0),
                check("soak: descriptors gained", row["descriptors"][1] - row["descriptors"][0], 2),
            ]
    return found


def main() -> None:
    """Measures what is not in the file yet, and writes after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    kit = kit_folder(parser, "grocery20/ and weights/")
    rows = Rows(arguments.json, arguments.quick, checks_of, same_cpu=True)
    left = [p for p in PARTS if p not in {row["name"] for row in rows.rows} and p in (arguments.only or PARTS)]
    work = Path(tempfile.mkdtemp())
    try:
        shared: dict[str, Any] = {"paths": prepared(kit, work, arguments.quick)} if left else {}
        if left:
            (work / "pictures").mkdir()
            shared["pictures"], shared["bytes_per_picture"] = enlarged(
                work / "pictures", kit / "grocery20", arguments.quick
            )
        for part in left:
            rows.add({"name": part, **measure(kit, work, arguments.quick, part, shared)})
    finally:
        shutil.rmtree(work)
    rows.say()


if __name__ == "__main__":
    main()
