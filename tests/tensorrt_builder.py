"""Builds plans ahead of time with TensorRT-RTX, which needs no GPU for that."""

from pathlib import Path

import pytest

ALL = (80, 86, 89, 120)  # A100, Orin's and desktop Ampere, Ada, desktop Blackwell


def build(path: Path, *sms: int, largest_batch=8) -> tuple[bytes, list[str]]:
    """Builds a plan for compute capabilities, for example 86.

    Returns:
        The plan and the builder's warnings. A graph that the parser or the builder refuses fails an assertion
        that shows their words.
    """
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.lines = {}

        def log(self, severity, text):
            self.lines.setdefault(severity, []).append(text)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(_flags(trt))
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(Path(path).read_bytes())
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert parsed, f"{path}: the parser refuses it: {errors}"
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    profile = builder.create_optimization_profile()
    pictures = network.get_input(0)
    shapes = [(batch, *tuple(pictures.shape)[1:]) for batch in (1, 1, largest_batch)]
    profile.set_shape(pictures.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, f"{path}: the builder refuses it: {log.lines.get(trt.ILogger.ERROR)}"
    return bytes(plan), log.lines.get(trt.ILogger.WARNING, [])


def _flags(trt):
    """Strong typing, where a version still asks for it."""
    kinds = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(kinds, name)) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(kinds, name))
