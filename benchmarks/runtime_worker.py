"""What a fresh process of runtime.py does, as standard input tells it; the answer goes to standard output.

Nothing of edgetl is imported before a side needs it: the others are what people write without it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLIENTS = 32
ANSWERED_WITHIN_S = 60.0


class Loop:
    """Full decode, Pillow's resize, numpy's normalisation, ONNX Runtime in FP32, as tutorials have it."""

    def __init__(self, paths: dict[str, Any], threads: int) -> None:
        self.session = _session(paths["plain"], threads)
        self.input = self.session.get_inputs()[0].name
        self.mean = np.array(paths["mean"], np.float32).reshape(3, 1, 1)
        self.std = np.array(paths["std"], np.float32).reshape(3, 1, 1)
        self.labels, self.size, self.resize_to = paths["labels"], paths["size"], paths["resize_to"]

    def __call__(self, path: str) -> tuple[str, float]:
        """Returns (label, probability)."""
        image = Image.open(path).convert("RGB")
        image = image.resize(_shortest(image.size, self.resize_to), Image.Resampling.BILINEAR)
        image = _center(image, self.size)
        pixels = np.asarray(image).astype(np.float32).transpose(2, 0, 1) / 255.0
        pixels = (pixels - self.mean) / self.std
        logits = self.session.run(None, {self.input: pixels[None]})[0][0]
        return _best(logits, self.labels)


class Tuned:
    """Exactly edgetl's work: reduced decode, normalisation in the graph, INT8, nothing that is not needed."""

    def __init__(self, paths: dict[str, Any], threads: int) -> None:
        self.session = _session(paths["int8"], threads)
        self.input = self.session.get_inputs()[0].name
        self.labels, self.size, self.resize_to = paths["labels"], paths["size"], paths["resize_to"]

    def __call__(self, path: str) -> tuple[str, float]:
        """Returns (label, probability)."""
        image = Image.open(path)
        image.draft(None, (2 * self.size, 2 * self.size))
        image = image.convert("RGB")
        image = image.resize(_shortest(image.size, self.resize_to), Image.Resampling.BILINEAR)
        pixels = np.asarray(_center(image, self.size))
        return _best(self.session.run(["logits"], {self.input: pixels[None]})[0][0], self.labels)


class Ours:
    """edgetl."""

    def __init__(self, paths: dict[str, Any], threads: int) -> None:
        import edgetl

        self.classify = edgetl.load(paths["bundle"], variant=paths["variant"], threads=threads)

    def __call__(self, path: str) -> tuple[str, float]:
        """Returns (label, probability)."""
        answer = self.classify(path)
        return str(answer.label), answer.confidence


SIDES: dict[str, Callable[[dict[str, Any], int], Callable[[str], tuple[str, float]]]] = {
    "loop": Loop, "tuned": Tuned, "edgetl": Ours,
}  # fmt: skip


def _session(path: str, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sides in one process would fight
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _shortest(size: tuple[int, int], side: int) -> tuple[int, int]:
    width, height = size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _center(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _best(logits: np.ndarray, labels: list[str]) -> tuple[str, float]:
    powers = np.exp(logits - logits.max())
    best = int(powers.argmax())
    return labels[best], float(powers[best] / powers.sum())


def child_classify(job: dict[str, Any]) -> dict[str, Any]:
    """All sides alive, called in turn in random order; each picture is first read once, so that no disk is timed."""
    sides = {name: SIDES[name](job["paths"], job["threads"]) for name in job["sides"]}
    pictures = job["pictures"]
    for path in pictures[:3]:
        Path(path).read_bytes()
        for side in sides.values():
            side(path)
    samples: dict[str, list[int]] = {name: [] for name in sides}
    rng = random.Random(job["seed"])
    names = list(sides)
    until = time.monotonic() + job["seconds"]
    count = 0
    while time.monotonic() < until:
        path = pictures[count % len(pictures)]
        count += 1
        rng.shuffle(names)
        for name in names:
            start = time.perf_counter_ns()
            sides[name](path)
            samples[name].append(time.perf_counter_ns() - start)
    return {"p50_ms": {name: float(np.median(taken)) / 1e6 for name, taken in samples.items()}, "rounds": count}


def child_accuracy(job: dict[str, Any]) -> dict[str, Any]:
    sides = {name: SIDES[name](job["paths"], 0) for name in job["sides"]}
    right = {name: [side(path)[0] == label for path, label in job["labelled"]] for name, side in sides.items()}
    return {"right": {name: [bool(r) for r in rights] for name, rights in right.items()}}


def child_first(job: dict[str, Any]) -> dict[str, Any]:
    """The first answer; the parent times the whole process."""
    side = SIDES[job["side"]](job["paths"], job["threads"])
    return {"answer": side(job["pictures"][0])[0]}


def child_memory(job: dict[str, Any]) -> dict[str, Any]:
    side = SIDES[job["side"]](job["paths"], job["threads"])
    for path in job["pictures"]:
        side(path)
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage would tell the parent's peak too
    return {"peak_bytes": int(status.split("VmHWM:")[1].split()[0]) << 10}


def child_submit(job: dict[str, Any]) -> dict[str, Any]:
    """Pictures a second, of 32 threads that call, and of 32 that submit, block by block."""
    import edgetl

    with edgetl.load(
        job["bundle"], variant=job["variant"], threads=job["threads"],
        batching=edgetl.Batching(max_batch=job["max_batch"], workers=job["workers"]),
    ) as classify:  # fmt: skip
        frames = [np.asarray(Image.open(p).convert("RGB")) for p in job["pictures"]]
        ways = {"call": classify, "submit": lambda frame: classify.submit(frame).result()}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(2 * job["blocks"]):
            name = ("call", "submit")[(turn + job["seed"]) % 2]
            found[name].append(_throughput(ways[name], frames, job["seconds"]))
        sizes = classify.metrics()["batch_pictures"]
    return {"pictures_per_s": {name: float(np.median(rates)) for name, rates in found.items()},
            "mean_batch": sizes["sum"] / max(1, sizes["count"])}  # fmt: skip


def _throughput(ask: Callable[[Any], Any], frames: list[Any], seconds: float) -> float:
    counts = [0] * CLIENTS
    stop = threading.Event()

    def client(number: int) -> None:
        turn = number
        while not stop.is_set():
            ask(frames[turn % len(frames)])
            counts[number] += 1
            turn += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def child_deadline(job: dict[str, Any]) -> dict[str, Any]:
    """Twice as many requests as can be served, at even distances; how long those took that were answered."""
    import edgetl
    from edgetl.errors import DeadlineExceeded, Overloaded

    deadline_ms = job["deadline_ms"]
    with edgetl.load(job["bundle"], variant=job["variant"], batching=edgetl.Batching(max_batch=8)) as classify:
        frames = [np.asarray(Image.open(p).convert("RGB")) for p in job["pictures"]]
        rate = 2 * _throughput(lambda frame: classify.submit(frame).result(), frames, 2.0)
        batch_ms = _batch_ms(classify, frames)
        answered: list[float] = []
        failed = {"late": 0, "refused": 0, "failed": 0}
        lock = threading.Lock()
        waiting = []
        begun = time.perf_counter()
        for number in range(int(rate * job["seconds"])):
            time.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            sent = time.perf_counter()

            def done(future: Any, sent: float = sent) -> None:
                took = (time.perf_counter() - sent) * 1e3
                with lock:
                    if isinstance(future.exception(), DeadlineExceeded):
                        failed["late"] += 1
                    elif future.exception() is not None:
                        failed["failed"] += 1
                    else:
                        answered.append(took)

            try:
                future = classify.submit(frames[number % len(frames)], deadline_ms=deadline_ms)
            except Overloaded:
                failed["refused"] += 1
                continue
            future.add_done_callback(done)
            waiting.append(future)
        for future in waiting:
            future.exception(ANSWERED_WITHIN_S)
    return {"deadline_ms": deadline_ms, "batch_ms": batch_ms, "p99_ms": float(np.percentile(answered, 99)),
            "answered": len(answered), "rate": rate, **failed}  # fmt: skip


def _batch_ms(classify: Any, frames: list[Any]) -> float:
    """Returns what a batch takes while as many are under way as there are workers, one a core."""
    taken: list[float] = []

    def run() -> None:
        for turn in range(2 * len(frames)):
            batch = [frames[(turn + k) % len(frames)] for k in range(8)]
            start = time.perf_counter()
            classify.batch(batch)
            taken.append((time.perf_counter() - start) * 1e3)

    threads = [threading.Thread(target=run) for _ in range(min(4, len(os.sched_getaffinity(0))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(np.median(taken))


def child_soak(job: dict[str, Any]) -> dict[str, Any]:
    """Clients that submit, call, and check every answer, and another model every few seconds."""
    import edgetl
    from edgetl.errors import Overloaded

    frames = [np.asarray(Image.open(p).convert("RGB")) for p in job["pictures"]]
    expected: dict[str, list[tuple[str, np.ndarray]]] = {}
    for root in job["bundles"]:
        with edgetl.load(root, variant=job["variant"]) as alone:
            for frame in frames:
                answer = alone(frame)
                expected.setdefault(str(answer.labels), []).append((str(answer.label), answer.scores))
    sent, answered, wrong, refused = [0] * 8, [0] * 8, [0] * 8, [0] * 8
    stop = threading.Event()
    with edgetl.load(job["bundles"][0], variant=job["variant"], batching=edgetl.Batching(max_batch=8)) as classify:

        def judge(number: int, pick: int, answer: edgetl.Prediction) -> None:
            answered[number] += 1
            label, scores = expected[str(answer.labels)][pick]
            if answer.label != label or not np.allclose(answer.scores, scores, atol=1e-3):
                wrong[number] += 1

        def client(number: int) -> None:
            turn = number
            while not stop.is_set():
                picks = [(turn + k) % len(frames) for k in range(8)]
                turn += 1
                futures = []
                for pick in picks:
                    with suppress(Overloaded):
                        futures.append((pick, classify.submit(frames[pick])))
                sent[number] += len(futures)
                refused[number] += len(picks) - len(futures)
                for pick, future in futures:
                    with suppress(TimeoutError):  # lost: sent, and not answered
                        judge(number, pick, future.result(ANSWERED_WITHIN_S))
                sent[number] += 1
                judge(number, picks[0], classify(frames[picks[0]]))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        memory, descriptors, swaps = [], [], 0
        while time.monotonic() - begun < job["seconds"]:
            time.sleep(job["every_s"])
            swaps += 1
            classify.reload(job["bundles"][swaps % 2])
            memory.append((time.monotonic() - begun, _rss()))
            descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        stop.set()
        for thread in threads:
            thread.join()
        counted = classify.metrics()
    half = [point for point in memory if point[0] > job["seconds"] / 4]  # after the allocator has its pools
    slope = float(np.polyfit([t / 60 for t, _ in half], [b / 2**20 for _, b in half], 1)[0])
    return {"seconds": time.monotonic() - begun, "swaps": swaps, "sent": sum(sent), "answered": sum(answered),
            "wrong": sum(wrong), "refused": sum(refused), "counted": counted["pictures"],
            "slope_mib_per_min": slope, "rss_mib": [round(b / 2**20, 1) for _, b in memory],
            "descriptors": [min(descriptors), max(descriptors)]}  # fmt: skip


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(globals()[f"child_{sys.argv[1]}"](json.load(sys.stdin))))
