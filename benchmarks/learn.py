"""Classes learned on the device from 1, 5 and 10 pictures each, beside those that the model was trained on.

    EDGETL_KIT=... python benchmarks/learn.py [--quick] --json FILE

Each draw takes three kinds of groceries away, trains a probe on the other 17, exports it to INT8, and shows the loaded
model some training pictures of the three; it is judged on the validation pictures of all. Kinds and pictures are drawn
by a seed. Each row is saved as it ends: the script goes on where it was stopped. ``--quick`` makes everything small:
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rows import Rows, check, kit_folder

import edgetl
from edgetl import host

DRAWS = 10
NEW = 3  # classes
SHOTS = (1, 5, 10)


def command(*arguments: str) -> None:
    """Runs a command of edgetl in a fresh process."""
    subprocess.run([sys.executable, "-m", "edgetl.cli.main", *arguments], check=True, stdout=subprocess.DEVNULL)


def model_of(kit: Path, work: Path, classes: Sequence[str], quick: bool) -> Path:
    """Trains on some of the classes and returns the bundle."""
    lines = ["path,label,split"]
    for split in ("train", "val"):
        for name in classes:
            pictures = sorted((kit / "grocery20" / split / name).iterdir())
            lines += [f"{path},{name},{split}" for path in pictures[: 6 if quick else None]]
    (work / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command(
        "finetune", str(work / "table.csv"), "--backbone", "mobilenet_v2", "--strategy", "probe",
        "--weights", str(kit / "weights" / "mobilenet_v2_tv.safetensors"), "--out", str(work / "run"),
        *(("--epochs", "1", "--size", "64") if quick else ()),
    )  # fmt: skip
    bundle = work / "model.edgetl"
    plain = ("--method", "mse", "--no-repair", "--no-mixed", "--max-drop", "100pt" if quick else "5pt")
    command("export", str(work / "run"), "--int8", "--out", str(bundle), *plain)
    return bundle


def share(classify: edgetl.Classifier, pictures: Sequence[tuple[Path, str]]) -> float:
    """Returns the share of pictures that are recognized."""
    answers = classify.batch([path for path, _ in pictures])
    return float(np.mean([answer.label == label for answer, (_, label) in zip(answers, pictures, strict=True)]))


def draw(kit: Path, work: Path, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Returns a row for each number of pictures that are learned from."""
    groceries = kit / "grocery20"
    names = sorted(place.name for place in (groceries / "train").iterdir())
    rng = np.random.default_rng(seed)
    new = sorted(rng.choice(names, NEW, replace=False).tolist())
    old = [name for name in names if name not in new]
    order = {name: rng.permutation(sorted((groceries / "train" / name).iterdir())).tolist() for name in new}
    judged = {
        name: [(path, name) for path in sorted((groceries / "val" / name).iterdir())[: 3 if quick else None]]
        for name in names
    }
    bundle = model_of(kit, work, old, quick)
    known = [pair for name in old for pair in judged[name]]
    foreign = [pair for name in new for pair in judged[name]]
    rows = []
    for shots in SHOTS[:1] if quick else SHOTS:
        with edgetl.load(bundle, engine="cpu", variant=f"int8-{host.arch()}") as classify:
            before = share(classify, known)
            start = time.perf_counter()
            for name in new:
                classify.learn(name, order[name][:shots])
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "name": "draw", "seed": seed, "shots": shots, "classes": new, "new": share(classify, foreign),
                    "old_before": before, "old_after": share(classify, known), "seconds": seconds,
                }
            )  # fmt: skip
    return rows


def checks_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the rows of five pictures say."""
    five = [row for row in rows if row["shots"] == (5 if any(row["shots"] == 5 for row in rows) else SHOTS[0])]
    found = float(np.mean([row["new"] for row in five]))
    lost = float(np.mean([row["old_before"] - row["old_after"] for row in five]))
    return [
        check("5 pictures: new classes recognized", found, 0.7, at_least=True),
        check("5 pictures: lost of the old classes", lost, 0.01),
    ]


def main() -> None:
    """Measures what is not in the file yet, and writes after every draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    kit = kit_folder(parser, "grocery20/ and weights/")
    rows = Rows(arguments.json, arguments.quick, checks_of)
    done = {row["seed"] for row in rows.rows}
    for seed in range(1 if arguments.quick else DRAWS):
        if seed in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.add(*draw(kit, Path(folder), seed, arguments.quick))
    rows.say()


if __name__ == "__main__":
    main()
