"""Fine-tuning against plain PyTorch, strategy against strategy, kills, and whether `select` ranks as training does.

    EDGETL_KIT=... python benchmarks/finetune.py [--quick] [--only PART]... --json FILE

Parts: ``probe`` (features once, against a loop that runs the frozen backbone each epoch), ``full`` (pictures per second
against that loop, the whole network trained), ``gpu`` (the same in mixed precision; left out where there is no GPU),
``strategies`` (lp-ft against full for as much time), ``kills`` (30 times SIGKILL), ``select`` (rank correlation with
what fine-tuning reaches in the mean of three seeds). Each row is saved as it ends: the script goes on where it was
stopped. ``--quick`` makes everything small: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import Rows, check, kit_folder
from torch import nn

from edgetl.backbones import load_pretrained, new_network
from edgetl.dataset import Dataset, open_dataset, write_digits
from edgetl.finetune import FinetuneConfig, finetune
from edgetl.finetune.data import evaluation_loader, training_loader
from edgetl.finetune.fit import precision_of
from edgetl.finetune.strategies import Freezing, parameter_groups
from edgetl.selection import Candidate, crossed, select

SEEDS = (0, 1, 2)
SIZES = (96, 128, 160, 224)
KILLS = 30
PAIRS = 5
GPU_EPOCHS = 10  # one is over before its workers have started
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # Lightning's choice, so the plain loop's too
BATCH = 32
Made = dict[str, Any] | list[dict[str, Any]]


class Clock:
    """A reporter that keeps when each stage was first and last heard of."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Keeps the time."""
        now = time.perf_counter()
        self.first.setdefault(stage, now)
        self.last[stage] = now

    def note(self, text: str) -> None:
        """Shows it."""
        print(f"    {text}", flush=True)

    def weights(self, report: Any) -> None:
        """Is of no interest here."""


def top1_of(run: Path) -> float:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]["top1"]


def settings(kit: Path, **changes: Any) -> FinetuneConfig:
    weights = str(kit / "weights" / "mobilenet_v2_tv.safetensors")
    return FinetuneConfig(backbone="mobilenet_v2", weights=weights, batch_size=BATCH, **changes)


def plain(config: FinetuneConfig, dataset: Dataset, epochs: int, *, head_only: bool) -> dict[str, float]:
    """What people write: a loop over epochs and batches, with the same pictures, network, rates, layout, arithmetic."""
    start = time.perf_counter()
    torch.manual_seed(config.seed)
    pretrained = load_pretrained(config.backbone, config.weights, size=config.size)
    network, spec = new_network(pretrained, dataset.classes)
    train = training_loader(
        dataset.split("train"),
        spec.preprocess,
        augment="none" if head_only else config.augment,
        batch_size=BATCH,
        seed=config.seed,
        workers=config.workers or 0,
    )
    val = evaluation_loader(dataset.split("val"), spec.preprocess, batch_size=BATCH, workers=config.workers or 0)
    network.to(DEVICE).to(memory_format=torch.channels_last)
    mixed = torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision_of(config.precision) == "bf16-mixed")
    if head_only:
        network.requires_grad_(False)
        network.head.requires_grad_(True)
        nn.init.zeros_(network.head.classifier.weight)
        groups = [{"params": list(network.head.parameters()), "lr": 6 * config.peak_lr}]
        kept = list(network.modules())
    else:
        kept = list(Freezing(network, config).begin_epoch(0))
        groups = parameter_groups(network, config)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    begun = time.perf_counter()
    top1 = 0.0
    for epoch in range(epochs):
        network.train()
        for module in kept:
            module.eval()
        for batch in train:
            pictures, labels = (part.to(DEVICE, non_blocking=True) for part in batch)
            with mixed:
                logits = network(pictures)[0]
                loss = nn.functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if not head_only:
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if not head_only or epoch == epochs - 1:
            network.eval()
            with torch.inference_mode(), mixed:
                right = [(network(x.to(DEVICE))[0].argmax(1) == y.to(DEVICE)).float() for x, y in val]
            top1 = float(torch.cat(right).mean())
    end = time.perf_counter()
    return {"seconds": end - start, "loop_seconds": end - begun, "top1": top1}


def pictures(kit: Path, work: Path, quick: bool) -> Dataset:
    return open_dataset(few(kit, work) if quick else kit / "grocery20")


def few(kit: Path, work: Path) -> Path:
    """A table of five pictures for training and three to judge on of each class."""
    table = work / "few.csv"
    lines = ["path,label,split"]
    for split, count in (("train", 5), ("val", 3)):
        for folder in sorted((kit / "cifar10_jpeg" / split).iterdir()):
            lines += [f"{path},{folder.name},{split}" for path in sorted(folder.iterdir())[:count]]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def probe(kit: Path, work: Path, quick: bool) -> dict[str, Any]:
    dataset = pictures(kit, work, quick)
    epochs = 1 if quick else 2  # of features, 5 or 10
    os.environ["XDG_CACHE_HOME"] = str(work / "empty-cache")
    config = settings(kit, strategy="probe", epochs=epochs, size=(32, 32) if quick else None)
    start = time.perf_counter()
    finetune(dataset, config, work / "probe", reporter=Clock())
    ours = time.perf_counter() - start
    theirs = plain(config, dataset, 1 if quick else 10, head_only=True)
    return {
        "seconds": ours,
        "plain_seconds": theirs["seconds"],
        "top1": top1_of(work / "probe"),
        "plain_top1": theirs["top1"],
    }


def full(kit: Path, work: Path, quick: bool, pair: int) -> dict[str, Any]:
    """One epoch each, the order changing from pair to pair."""
    config = settings(kit, strategy="full", epochs=1, seed=pair, size=(32, 32) if quick else None, workers=0)
    return beside_plain(config, pictures(kit, work, quick), work / f"full{pair}", ours_first=pair % 2 == 1)


def gpu(kit: Path, work: Path, quick: bool, pair: int) -> dict[str, Any]:
    """More epochs, under bf16 autocast, the pictures decoded by as many workers on both sides."""
    workers = max(1, min(8, (os.cpu_count() or 2) - 1))
    config = settings(kit, strategy="full", epochs=GPU_EPOCHS, seed=pair, precision="bf16", workers=workers)
    dataset = pictures(kit, work, quick)
    plain(replace(config, epochs=1), dataset, 1, head_only=False)  # whoever is first would wait for CUDA's libraries
    found = beside_plain(config, dataset, work / f"gpu{pair}", ours_first=pair % 2 == 1)
    return {**found, "gpu": torch.cuda.get_device_name(), "workers": workers}


def beside_plain(config: FinetuneConfig, dataset: Dataset, out: Path, *, ours_first: bool) -> dict[str, Any]:
    found: dict[str, float] = {}

    def ours() -> None:
        clock = Clock()
        finetune(dataset, config, out, reporter=clock)
        found["seconds"] = clock.first["scoring on val"] - clock.last["loading weights"]

    def theirs() -> None:
        found["plain_seconds"] = plain(config, dataset, config.epochs, head_only=False)["loop_seconds"]

    for turn in (ours, theirs) if ours_first else (theirs, ours):
        turn()
    count = len(dataset.split("train")) * config.epochs
    return {**found, "pictures_per_s": count / found["seconds"], "plain_pictures_per_s": count / found["plain_seconds"]}


def strategy(kit: Path, work: Path, quick: bool, data: str, seed: int, name: str) -> dict[str, Any]:
    """lp-ft for 10 epochs; full for one more, so that it has at least as much time."""
    size = ("--size", "32" if quick else "96") if data == "cifar10_jpeg" else ()
    source = few(kit, work) if quick else kit / data
    epochs = (1 if quick else 10) + (name == "full")
    out = work / f"{data}-{name}-{seed}"
    start = time.perf_counter()
    on_one_core(
        kit, out, str(source), "--backbone", "mobilenet_v2",
        "--weights", str(kit / "weights" / "mobilenet_v2_tv.safetensors"), "--strategy", name,
        "--epochs", str(epochs), "--seed", str(seed), *size,
    )  # fmt: skip
    return {"data": data, "strategy": name, "seed": seed, "epochs": epochs, "top1": top1_of(out),
            "seconds": time.perf_counter() - start}  # fmt: skip


def on_one_core(kit: Path, out: Path, *arguments: str) -> None:
    """Fine-tunes by command, in a process that uses one core and a cache of its own."""
    command = [sys.executable, "-m", "edgetl.cli.main", "finetune", *arguments, "--out", str(out)]
    found = os.pathsep.join([str(kit), os.environ.get("PYTHONPATH", "")])  # zoo.py
    own = {"PYTHONPATH": found, "XDG_CACHE_HOME": str(out.with_name(f"cache-{out.name}")), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env={**os.environ, **own}, stderr=subprocess.DEVNULL)


def side_by_side(train: Callable[[Any], dict[str, Any]], cases: Sequence[Any]) -> list[dict[str, Any]]:
    """Trains two at once, each on a core of its own, so that whatever slows one slows the other."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(train, cases))


def kills(work: Path, quick: bool) -> dict[str, Any]:
    """Kills runs until there were enough kills; each is resumed until it is complete, and compared."""
    data, wanted = work / "digits", 1 if quick else KILLS
    write_digits(data, per_class=24)
    command = [
        sys.executable, "-m", "edgetl.cli.main", "finetune", str(data), "--backbone", "small_cnn", "--weights", "none",
        "--strategy", "lp-ft", "--epochs", "2" if quick else "8", "--dropout", "0.3", "--batch-size", "16",
    ]  # fmt: skip

    def start(out: Path) -> subprocess.Popen[bytes]:
        going_on = ["--resume"] if (out / "config.yaml").exists() else []
        return subprocess.Popen(
            [*command, "--out", str(out), *going_on], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    begun = time.monotonic()
    assert start(work / "whole").wait() == 0
    lasts = time.monotonic() - begun
    print(f"    a run lasts {lasts:.0f} s", flush=True)
    whole, rng = (work / "whole" / "checkpoint.safetensors").read_bytes(), random.Random(0)
    done, damaged, different, complete, stages = 0, 0, 0, 0, []
    while done < wanted:
        out = work / f"killed{complete}"
        while not (out / "metrics.json").exists():
            process = start(out)
            try:
                ended = process.wait(timeout=rng.uniform(0.2, 1.0) * lasts if done < wanted else 600)
                assert ended == 0, f"a run ended with {ended}"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                last = out / "last.ckpt"
                stages.append("none" if not last.exists() else "checkpoint")
                if last.exists():
                    try:
                        torch.load(last, weights_only=True)
                    except Exception as error:
                        print(f"    damaged: {error}")
                        damaged += 1
        different += (out / "checkpoint.safetensors").read_bytes() != whole
        complete += 1
        print(f"    {done} kills, {complete} runs complete, {different} different", flush=True)
    return {"kills": done, "runs": complete, "damaged": damaged, "different": different,
            "with_checkpoint": stages.count("checkpoint")}  # fmt: skip


def candidates(kit: Path, quick: bool) -> list[Candidate]:
    half = (0.5, 0.5, 0.5)
    both = [
        Candidate("mobilenet_v2", str(kit / "weights" / "mobilenet_v2_tv.safetensors")),
        Candidate("zoo:mobilenet_v2_tf", mean=half, std=half),
    ]
    return crossed(both[:1], (32, 48)) if quick else crossed(both, SIZES)


def ranking(kit: Path, work: Path, quick: bool) -> dict[str, Any]:
    dataset = pictures(kit, work, quick)
    start = time.perf_counter()
    found = select(dataset, candidates(kit, quick), reporter=Clock(), seconds=0.2 if quick else 1.0)
    return {**found.to_dict(), "seconds": time.perf_counter() - start}


def tuned(kit: Path, work: Path, quick: bool, seed: int, candidate: Candidate) -> dict[str, Any]:
    """The default strategy on a candidate."""
    source = few(kit, work) if quick else kit / "grocery20"
    out = work / f"candidate-{candidate.backbone.replace(':', '-')}-{candidate.size[0]}-{seed}"
    own = [("--mean", candidate.mean), ("--std", candidate.std)]
    numbers = [part for name, values in own if values for part in (name, ",".join(map(str, values)))]
    start = time.perf_counter()
    on_one_core(
        kit, out, str(source), "--backbone", candidate.backbone, "--weights", candidate.weights,
        "--size", str(candidate.size[0]), "--seed", str(seed), *numbers,
        *(("--epochs", "1", "--strategy", "probe") if quick else ()),
    )  # fmt: skip
    found = {"candidate": candidate.name, "seed": seed, "top1": top1_of(out)}
    return {**found, "seconds": time.perf_counter() - start}


def checks_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the rows that are there say."""
    by = {part: [row for row in rows if row["name"] == part] for part in PARTS}
    found = []
    for row in by["probe"]:
        found += [
            check("probe: time / plain loop", row["seconds"] / row["plain_seconds"], 0.2),
            check("probe: top-1 beyond the plain loop's", row["top1"] - row["plain_top1"], -0.01, at_least=True),
        ]
    if by["full"]:
        ratio = float(np.median([row["plain_seconds"] / row["seconds"] for row in by["full"]]))
        found.append(check("full: pictures per second / plain loop", ratio, 0.95, at_least=True))
    if by["gpu"]:
        ratio = float(np.median([row["plain_seconds"] / row["seconds"] for row in by["gpu"]]))
        found.append(check("gpu: pictures per second in bf16 / plain loop", ratio, 0.95, at_least=True))
    for data in ("grocery20", "cifar10_jpeg"):
        parts = {
            n: [r for r in by["strategies"] if r["data"] == data and r["strategy"] == n] for n in ("lp-ft", "full")
        }
        if all(parts.values()):
            means = {name: float(np.mean([r["top1"] for r in part])) for name, part in parts.items()}
            times = {name: float(np.mean([r["seconds"] for r in part])) for name, part in parts.items()}
            found += [
                check(f"{data}: top-1 of lp-ft beyond full's", means["lp-ft"] - means["full"], 0.0, at_least=True),
                check(f"{data}: time of lp-ft / full", times["lp-ft"] / times["full"], 1.0),
            ]
    for row in by["kills"]:
        found += [
            check("kills: checkpoints damaged", row["damaged"], 0),
            check("kills: results different", row["different"], 0),
        ]
    reached: dict[str, dict[int, float]] = {}
    for row in by["select"]:
        if "candidate" in row:
            reached.setdefault(row["candidate"], {})[row["seed"]] = row["top1"]
    for row in by["select"]:
        names = [c["name"] for c in row.get("candidates", ())]
        if len(names) > 2 and all(reached.get(name, {}).keys() == set(SEEDS) for name in names):
            from scipy.stats import spearmanr

            told = [c["probe_top1"] for c in row["candidates"]]
            correlation = float(spearmanr(told, [np.mean(list(reached[name].values())) for name in names]).statistic)
            found.append(check("select: rank correlation with fine-tuning", correlation, 0.7, at_least=True))
    return found


PARTS = ("probe", "full", "gpu", "strategies", "kills", "select")


def plan(kit: Path, work: Path, quick: bool) -> list[tuple[str, str, Callable[[], Made]]]:
    """Returns (part, key, how) of every row, or of two."""
    steps: list[tuple[str, str, Callable[[], Made]]] = [("probe", "", lambda: probe(kit, work, quick))]
    steps += [("full", str(p), lambda p=p: full(kit, work, quick, p)) for p in range(1 if quick else PAIRS)]
    if torch.cuda.is_available():
        steps += [("gpu", str(p), lambda p=p: gpu(kit, work, quick, p)) for p in range(1 if quick else PAIRS)]
    else:
        print("gpu: left out, there is none here", flush=True)
    for data in ("cifar10_jpeg",) if quick else ("cifar10_jpeg", "grocery20"):
        for seed in SEEDS[:1] if quick else SEEDS:
            train = partial(strategy, kit, work, quick, data, seed)
            steps.append(("strategies", f"{data} {seed}", partial(side_by_side, train, ("lp-ft", "full"))))
    steps.append(("kills", "", lambda: kills(work, quick)))
    steps.append(("select", "", lambda: ranking(kit, work, quick)))
    by_size: dict[int, list[Candidate]] = {}
    for candidate in candidates(kit, quick):
        by_size.setdefault(candidate.size[0], []).append(candidate)
    for seed in SEEDS[:1] if quick else SEEDS:
        for side, pair in by_size.items():
            train = partial(tuned, kit, work, quick, seed)
            steps.append(("select", f"at {side} {seed}", partial(side_by_side, train, pair)))
    return steps


def main() -> None:
    """Measures what is not in the file yet, and writes after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    kit = kit_folder(parser, "grocery20/, cifar10_jpeg/ and weights/")
    sys.path.insert(0, str(kit))  # zoo.py
    rows = Rows(arguments.json, arguments.quick, checks_of)
    done = {(row["name"], row["key"]) for row in rows.rows}
    with tempfile.TemporaryDirectory() as folder:
        for part, key, how in plan(kit, Path(folder), arguments.quick):
            if (part, key) in done or (arguments.only and part not in arguments.only):
                continue
            made = how()
            rows.add(*({"name": part, "key": key, **row} for row in (made if isinstance(made, list) else [made])))
    rows.say()


if __name__ == "__main__":
    main()
