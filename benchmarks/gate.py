"""Whether the gate of ``edgetl bench --against`` can be trusted: false alarms, and regressions that it catches.

    python benchmarks/gate.py [--quick] --json FILE

Live: every decision is a whole `bench_against` of a bundle with a copy of itself, at a limit of 3 %; then again with a
busy loop of 5 % of its median planted in one side. Simulated: 10,000 decisions drawn from the live A/A samples, whole
processes and blocks of 25 neighbouring calls with replacement; as many with the busy loop's time added. Beside it, on
the same samples, what a fixed threshold on means would say: of calls in turn, and of runs one after the other, as
pytest-benchmark compares. ``--quick`` decides once each and simulates 20: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from rows import check, say

from edgetl import runtime
from edgetl.artifacts import OnnxModel, write_json
from edgetl.bench import BenchConfig, Contender, Limits, bench_against, jobs, measure
from edgetl.bench.against import BUDGET_S, duel_of
from edgetl.bench.conditions import fingerprint
from edgetl.bench.gate import latency_check
from edgetl.bundle import Variant, write_manifest

LIMIT, PLANTED = 0.03, 0.05
NETWORKS = ("mobilenet_v3_small", "timm/mobilenetv4_conv_small", "resnet18")
ALARMS, CATCHES, SIMULATED = 20, 14, 10_000  # the first two of each network
BLOCK = 25
BLOCKS_OF_AGREEMENT = 10
Floats = NDArray[np.float64]


def bundle_of(name: str, folder: Path) -> Path:
    """Exports a network of random weights: what they are changes no kernel's time."""
    import torch

    from edgetl.backbones import load_pretrained, new_network
    from edgetl.export import onnx_from_module

    torch.manual_seed(0)
    module, spec = new_network(load_pretrained(name, "none"), ("a", "b"))
    root = folder / f"{name.rpartition('/')[2]}.edgetl"
    root.mkdir()
    model: OnnxModel = onnx_from_module(module.eval(), spec, root / "model.fp32.onnx")
    variant = Variant(
        "fp32", "fp32", "any", model.path.name, model.sha256, model.path.stat().st_size, True, "reference"
    )
    write_manifest(root, spec, [variant], provenance={}, proof={})
    return root


@dataclass
class Decisions:
    """Live decisions on one network."""

    network: str
    config: BenchConfig
    alarms: list[bool] = field(default_factory=list)
    caught: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rises: list[float] = field(default_factory=list)
    processes: list[list[Floats]] = field(default_factory=list)  # of A/A: model, reference, its copy
    planted_ns: int = 0

    def decide(self, root: Path, copy: Path) -> str:
        """Lets the gate judge, planted or not; what is undecided is an alarm where nothing is, and no catch."""
        limits = Limits(max_regression=LIMIT)
        sides = [Contender(path.name, path, None) for path in (root, copy)]
        kept = []
        real = measure.measure_latency

        def keeping(*arguments, **options):
            kept[:] = [real(*arguments, **options)]
            return kept[0]

        start = time.monotonic()
        with mock.patch("edgetl.bench.against.measure_latency", keeping):
            _, verdict = bench_against(*sides, self.config, limits, on_progress=lambda *_: None)
        self.seconds.append(time.monotonic() - start)
        if not self.planted_ns:
            self.processes += [
                [np.array(process, np.float64) for process in sides] for sides in zip(*kept[0].samples_ns, strict=True)
            ]
        self.rises.append(verdict.checks[0].measured)
        print(
            f"{self.network}: {verdict.checks[0].state}, {verdict.checks[0].text}; {self.seconds[-1]:.0f} s", flush=True
        )
        return verdict.checks[0].state


def live(root: Path, config: BenchConfig, alarms: int, catches: int) -> Decisions:
    """Lets the gate decide on a bundle and its copy, then with a busy loop in the first."""
    found = Decisions(root.stem, config)
    copy = root.with_name(f"{root.stem}-copy.edgetl")
    shutil.copytree(root, copy)
    found.alarms = [found.decide(root, copy) != "holds" for _ in range(alarms)]
    median = statistics.median(np.median(process[1]) for process in found.processes)
    found.planted_ns = round(PLANTED * median)
    environment = {"EDGETL_PLANT_NS": str(found.planted_ns)}
    worker = Path(__file__).with_name("gate_worker.py")
    with mock.patch.object(measure, "_WORKER", worker), mock.patch.dict(os.environ, environment):
        found.caught = [found.decide(root, copy) == "fails" for _ in range(catches)]
    return found


def resampled(process: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    """Draws blocks of neighbouring calls with replacement, the same for all sides."""
    count = len(process[0])
    block = min(BLOCK, max(5, count // 8))
    starts = rng.integers(0, count - block + 1, -(-count // block))
    index = (starts[:, None] + np.arange(block)).ravel()[:count]
    return [side[index] for side in process]


def simulate(found: Decisions, count: int, planted: bool, rng: np.random.Generator) -> dict[str, float]:
    """Returns the share of alarms of the gate, and of fixed thresholds on means."""
    start = 2 * found.config.processes
    most = max(start, int(BUDGET_S / (statistics.median(found.seconds) / start)) // 2 * 2)
    alarms = {"gate": 0, "means in turn": 0, "means of two runs": 0}
    for _ in range(count):
        drawn: list[list[Floats]] = []
        while True:
            for index in rng.integers(0, len(found.processes), start if not drawn else 2):
                model, reference, copy = resampled(found.processes[index], rng)
                extra = PLANTED * float(np.median(reference)) if planted else 0.0
                drawn.append([model + extra, reference, copy])
            duel = duel_of("", *([process[side] for process in drawn] for side in range(3)))
            check = latency_check("", duel.found, duel.floor, LIMIT)
            if check.ok is not None or len(drawn) >= most:
                break
        alarms["gate"] += check.state == "fails" if planted else check.state != "holds"
        model, reference = (np.concatenate([process[side] for process in drawn[:start]]) for side in (0, 1))
        alarms["means in turn"] += model.mean() > (1 + LIMIT) * reference.mean()
        other = [found.processes[i][1] for i in rng.integers(0, len(found.processes), start)]
        alarms["means of two runs"] += model.mean() > (1 + LIMIT) * np.concatenate(other).mean()
    return {name: hits / count for name, hits in alarms.items()}


def agreement(root: Path, calls: int) -> float:
    """Returns our p50 over that of bare onnxruntime calls, both in turn, in 10 blocks: the median ratio."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(root / "model.fp32.onnx"), options, providers=["CPUExecutionProvider"])
    with runtime.load(root, variant="fp32", engine="cpu", threads=1) as classify:
        picture = jobs._pictures(classify)
        [ours] = jobs._calls([classify])
        feed = {session.get_inputs()[0].name: picture}
        loops = (lambda: jobs._timed(ours), lambda: bare_call(session, feed))
        rounds, ratios = jobs._Rounds(2), []
        for number in range(BLOCKS_OF_AGREEMENT + 1):
            found: tuple[list[int], list[int]] = ([], [])
            for _ in range(calls):
                for index in rounds.next():
                    found[index].append(loops[index]())
            if number:  # the first block warms up
                ratios.append(statistics.median(found[0]) / statistics.median(found[1]))
    return statistics.median(ratios)


def bare_call(session, feed) -> int:
    """Returns the nanoseconds of one call, with nothing of ours around it."""
    start = time.perf_counter_ns()
    session.run(None, feed)
    return time.perf_counter_ns() - start


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    quick = arguments.quick
    alarms, catches, simulated = (1, 1, 20) if quick else (ALARMS, CATCHES, SIMULATED)
    config = BenchConfig(processes=1, seconds=0.3) if quick else BenchConfig()
    facts, rng, rows, agreements = fingerprint(), np.random.default_rng(0), [], []
    lives = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS[:1] if quick else NETWORKS:
            root = bundle_of(name, Path(folder))
            agreements.append(agreement(root, 50 if quick else 300))
            print(f"{name}: p50 / bare loop {agreements[-1]:.4f}", flush=True)
            lives.append(live(root, config, alarms, catches))
    shares = {"alarms": {}, "caught": {}}
    for found in lives:
        part = simulated // len(lives) + 1
        drawn = {kind: simulate(found, part, kind == "caught", rng) for kind in shares}
        for kind, by_rule in drawn.items():
            for rule, share in by_rule.items():
                shares[kind].setdefault(rule, []).append(share)
        rows.append(
            {
                "name": "decisions",
                "network": found.network,
                "p50_ms": statistics.median(float(np.median(p[1])) for p in found.processes) / 1e6,
                "planted_ms": found.planted_ns / 1e6,
                "live_alarms": sum(found.alarms),
                "live_aa": len(found.alarms),
                "live_caught": sum(found.caught),
                "live_planted": len(found.caught),
                "rises": found.rises,
                "seconds": found.seconds,
                "simulated": part,
                **{
                    f"{kind}_{rule.replace(' ', '_')}": share
                    for kind, by in drawn.items()
                    for rule, share in by.items()
                },
            }
        )
        print(rows[-1]["network"], {k: v for k, v in rows[-1].items() if "alarms" in k or "caught" in k}, flush=True)
    mean = {kind: {rule: statistics.mean(values) for rule, values in by.items()} for kind, by in shares.items()}
    longest = max(second for found in lives for second in found.seconds)
    checks = [
        check("A/A, simulated: false alarms", mean["alarms"]["gate"], 0.01),
        check("A/A, live: false alarms", sum(sum(f.alarms) for f in lives), 1),
        check("5 % slower, simulated: caught", mean["caught"]["gate"], 0.95, at_least=True),
        check(
            "5 % slower, live: caught",
            sum(sum(f.caught) for f in lives) / sum(len(f.caught) for f in lives),
            0.95,
            at_least=True,
        ),
        check("longest decision, seconds", longest, 60),
        *(
            check(f"{f.network}: p50 / bare loop, off by", abs(a - 1), 0.02)
            for f, a in zip(lives, agreements, strict=True)
        ),
    ]
    result = {"format_version": 1, "quick": quick, "host": facts, "rows": rows, "checks": checks}
    write_json(arguments.json, result)
    say(checks)


if __name__ == "__main__":
    main()
