"""One job of the quantization benchmark, in a process of its own: ``python ptq_worker.py JOB ARGUMENTS``.

    network NAME OUT.onnx                      exports one of the networks
    pictures SOURCE COUNT OUT.npy              preprocesses pictures, and writes their labels beside them
    plain MODEL COUNT REPORT.json              decodes, preprocesses and runs FP32, batch 8: what calibration must cost
    method NAME MODEL COUNT REPORT.json        calibrates from picture files by one threshold method
    forms MODEL PICTURES.npy FOLDER            writes INT8 as it is by default, and with every layer in INT8
    threshold NAME MODEL PICTURES.npy OUT.onnx writes the TensorRT form by one threshold method, nothing else
    judge MODEL PICTURES.npy OUT.npy           writes logits, Q/DQ computed as they stand
    latency SECONDS REPORT.json MODEL...       times single pictures, all graphs alive, call by call in turn

Needs EDGETL_KIT.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.artifacts import OnnxModel, sha256_of, write_json
from edgetl.dataset import calibration_sample, open_dataset
from edgetl.preprocess import preprocess
from edgetl.quantize import TARGETS, Graph, QuantizeConfig, calibrate, load_onnx, place, write_int8
from edgetl.quantize.sensitivity import multiply_adds
from edgetl.runtime.ort import OrtSession
from edgetl.spec import ModelSpec, PreprocessSpec

KIT = Path(os.environ["EDGETL_KIT"])
BATCH = 8
THREADS = int(os.environ.get("OMP_NUM_THREADS", "0"))
# Backbones of the x86 comparison: their features come from random weights but for the first, whose are real.
BACKBONES = ("mobilenet_v2", "resnet18", "mobilenet_v3_large", "efficientnet_b0")
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def spec_of(name: str) -> ModelSpec:
    """Returns what a network of the kit expects, or what was written beside a backbone's graph."""
    if name == "resnet20_cifar10":
        preprocess = PreprocessSpec(size=(32, 32), resize_to=None, crop="none", mode="squash")
        return ModelSpec(name, preprocess, tuple(f"class {i}" for i in range(10)), "own")
    preprocess = PreprocessSpec(**(HALF if name == "mobilenet_v2_tf" else {}))
    return ModelSpec(name, preprocess, tuple(f"class {i}" for i in range(1000)), "own")


def files_of(name: str) -> list[tuple[Path, int]]:
    """Returns (picture, class) of a source, classes taking turns."""
    if name == "imagenet":
        rows = [row.split(",") for row in (KIT / "imagenet_sample" / "labels.csv").read_text().splitlines()[1:]]
        return [(KIT / "imagenet_sample" / "images" / row[0], int(row[1])) for row in rows]
    source, _, split = name.partition(":")
    items = open_dataset(KIT / source).split(split)
    return [(item.path, item.label) for item in calibration_sample(items, len(items))]


def network(name: str, out: str) -> None:
    import torch

    from edgetl.export import onnx_from_module

    torch.manual_seed(0)
    sys.path.insert(0, str(KIT))
    import zoo

    if name in BACKBONES:
        module, spec = backbone(name)
    else:
        builder = {"resnet20_cifar10": zoo.resnet20_cifar}.get(name) or getattr(zoo, name)
        module, spec = builder().eval(), spec_of(name)
    onnx_from_module(module, spec, Path(out))
    write_json(Path(out).with_suffix(".spec.json"), spec.to_dict())


def backbone(name: str) -> tuple[Any, ModelSpec]:
    """Returns a backbone with a linear head that ridge regression fitted to grocery20.

    No pretrained weights are at hand for three of the four. Random ones with warmed BatchNorm statistics cost as much
    time, and their features carry enough for the head's decisions to mean something.
    """
    import torch

    from edgetl.backbones import load_pretrained, new_network

    weights = str(KIT / "weights" / "mobilenet_v2_tv.safetensors") if name == "mobilenet_v2" else "none"
    labels = open_dataset(KIT / "grocery20").classes
    module, spec = new_network(load_pretrained(name, weights), tuple(labels))
    files = files_of("grocery20:train")
    pictures = torch.from_numpy(np.stack([preprocess(path, spec.preprocess) for path, _ in files]))
    if weights == "none":
        warm(module, pictures[:64])
    module.eval()
    with torch.inference_mode():
        features = torch.cat([module(part)[1] for part in pictures.split(32)]).double()
    targets = torch.nn.functional.one_hot(torch.tensor([label for _, label in files])).double() - 1 / len(labels)
    scale = features.std()
    ones = torch.ones(len(features), 1, dtype=torch.double)
    x = torch.cat([features / scale, ones], 1)
    solved = torch.linalg.solve(x.T @ x + 1.0 * torch.eye(x.shape[1], dtype=torch.double), x.T @ targets)
    head = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        head.weight.copy_((solved[:-1] / scale).T * 10)
        head.bias.copy_(solved[-1] * 10)
    return module, spec


def warm(module: Any, pictures: Any) -> None:
    """Gives BatchNorm the statistics of pictures, so that activations keep a sane size."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
            part.reset_running_stats()
            part.train()
    with torch.no_grad():
        module(pictures)


def pictures(source: str, count: str, out: str, spec_file: str) -> None:
    spec = ModelSpec.from_file(Path(spec_file))
    files = files_of(source)[: int(count)]
    np.save(out, np.stack([preprocess(path, spec.preprocess) for path, _ in files]))
    np.save(Path(out).with_suffix(".labels.npy"), np.array([label for _, label in files]))


def model_of(path: str) -> OnnxModel:
    """Returns a graph with the spec beside it."""
    spec = ModelSpec.from_file(Path(path).with_suffix(".spec.json"))
    return OnnxModel(Path(path), spec, "fp32", "any", sha256_of(Path(path)), "")


def decoded(model: OnnxModel, count: int) -> Iterator[NDArray[np.uint8]]:
    """Decodes and preprocesses pictures of the ImageNet sample, in batches."""
    files = files_of("imagenet")[:count]
    for start in range(0, count, BATCH):
        yield np.stack([preprocess(path, model.spec.preprocess) for path, _ in files[start : start + BATCH]])


def stored(path: str) -> Iterator[NDArray[np.uint8]]:
    """Reads pictures again, in batches."""
    values = np.load(path, mmap_mode="r")
    for start in range(0, len(values), BATCH):
        yield np.array(values[start : start + BATCH])


def report(path: str, began: float, **more: Any) -> None:
    """Writes the seconds since and the largest resident set of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    result = {"seconds": time.perf_counter() - began, "peak_bytes": int(found[1]) * 1024, **more}
    Path(path).write_text(json.dumps(result), encoding="utf-8")


def plain(path: str, count: str, out: str) -> None:
    model = model_of(path)
    began = time.perf_counter()
    with OrtSession(model.path, model.spec, threads=THREADS) as session:
        for batch in decoded(model, int(count)):
            session.infer(batch)
    report(out, began)


def method(name: str, path: str, count: str, out: str) -> None:
    model = model_of(path)
    config = QuantizeConfig() if name == "default" else QuantizeConfig(method=name, repair=False, mixed=False)
    began = time.perf_counter()
    calibration = calibrate(model, decoded(model, int(count)), config)
    write_int8(model, calibration, "tensorrt", Path(out).with_suffix(".onnx"))
    report(out, began)


def threshold(name: str, path: str, source: str, out: str) -> None:
    model = model_of(path)
    config = QuantizeConfig(method=name, repair=False, mixed=False)
    write_int8(model, calibrate(model, stored(source), config), "tensorrt", Path(out))


def forms(path: str, source: str, folder: str) -> None:
    """Writes both, with the share of multiply-adds in INT8 and what was decided."""
    model = model_of(path)
    labels = np.load(Path(source).with_suffix(".labels.npy"))

    def measure(target: str, candidate: onnx.ModelProto) -> float | None:
        return over_fp32(model, candidate) if target == "x86" else None

    calibration = calibrate(model, stored(source), QuantizeConfig(), labels=labels, measure=measure)
    decisions = calibration.decisions
    out = Path(folder)
    for target in ("tensorrt", "x86"):
        write_int8(model, calibration, target, out / f"{target}.onnx")
    write_json(out / "calibration.json", {**calibration.to_dict(), "int8_share": int8_share(model, decisions.spared)})
    whole = replace(calibration, decisions=replace(decisions, spared={}))
    write_int8(model, whole, "tensorrt", out / "tensorrt.whole.onnx")


def int8_share(model: OnnxModel, spared: Mapping[str, Sequence[str]]) -> float:
    """Returns the share of all multiply-adds that the TensorRT form leaves to INT8, the last layer's counted too."""
    graph = Graph(load_onnx(model.path))
    placement = place(graph, TARGETS[0], spared=spared.get("tensorrt", ()))
    layers = [*placement.weights, *(name for name, _ in placement.spared)]
    macs = {name: multiply_adds(graph, graph.node(name)) for name in layers}
    return sum(macs[name] for name in placement.weights) / sum(macs.values())


def over_fp32(model: OnnxModel, candidate: onnx.ModelProto) -> float:
    """Returns a graph's latency over that of FP32, as the median of pairs."""
    with (
        OrtSession(model.path, model.spec, threads=1) as reference,
        OrtSession(candidate.SerializeToString(), model.spec, threads=1) as other,
    ):
        one, two = (np.array(samples, float) for samples in in_turn([other, reference], 3.0))
    return float(np.median(one / two))


def judge(path: str, source: str, out: str, spec_file: str, fused: str = "") -> None:
    spec = ModelSpec.from_file(Path(spec_file))
    with OrtSession(Path(path), spec, threads=THREADS, fake_quant=fused != "fused") as session:
        np.save(out, np.concatenate([session.infer(batch)["logits"] for batch in stored(source)]))


def latency(seconds: str, out: str, spec_file: str, *paths: str) -> None:
    spec = ModelSpec.from_file(Path(spec_file))
    sessions = [OrtSession(Path(path), spec, threads=1) for path in paths]
    Path(out).write_text(json.dumps(in_turn(sessions, float(seconds))), encoding="utf-8")


def in_turn(sessions: list[OrtSession], seconds: float) -> list[list[int]]:
    """Returns nanoseconds of single pictures for each session, call by call in turn."""
    shape = (1, *sessions[0].spec.preprocess.input_shape)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for session in sessions * 20:
        session.infer(picture)
    samples: list[list[int]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    order = list(range(len(sessions)))
    while time.perf_counter() < end:
        order.reverse()  # whoever goes first finds other caches
        for index in order:
            start = time.perf_counter_ns()
            sessions[index].infer(picture)
            samples[index].append(time.perf_counter_ns() - start)
    return samples


JOBS = {job.__name__: job for job in (network, pictures, plain, method, threshold, forms, judge, latency)}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
