"""edgetl.runtime.ort: a graph in ONNX Runtime, against the same sum in numpy."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tiny import TINY_BIAS, TINY_WEIGHT, noise, tiny_graph, tiny_spec

from edgetl.errors import EngineError
from edgetl.runtime import Session
from edgetl.runtime.ort import MAX_BATCH, PROVIDERS, OrtSession, has_provider


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return (
        np.stack([noise(16, 16, seed=seed + i) for i in range(count)]) if count else np.zeros((0, 16, 16, 3), np.uint8)
    )


def one_node(kind: str, element: int, shape: list[object], output: str = "logits") -> bytes:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], [output])],
        "g",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(output, element, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def session():
    with OrtSession(tiny_graph(), tiny_spec(), threads=1) as opened:
        yield opened


@pytest.mark.parametrize("count", [1, 2, MAX_BATCH])
def test_answers_are_the_graphs(session: Session, count):
    batch = pictures(count)

    answer = session.infer(batch)

    mean = batch.reshape(count, -1, 3).mean(axis=1)
    assert set(answer) == {"logits", "embedding"}
    assert answer["logits"].dtype == answer["embedding"].dtype == np.float32
    np.testing.assert_allclose(answer["embedding"], mean, rtol=1e-5)
    np.testing.assert_allclose(answer["logits"], mean @ TINY_WEIGHT.T + TINY_BIAS, rtol=1e-4)


@pytest.mark.parametrize("options", [{"spin": True}, {"fake_quant": True}, {"threads": 0}, {"threads": 2}])
def test_options_change_no_answer(session, tmp_path: Path, options):
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_graph())
    with OrtSession(path, tiny_spec(), **options) as other:
        np.testing.assert_array_equal(other.infer(pictures(3))["logits"], session.infer(pictures(3))["logits"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pictures(1).astype(np.float32), "input is float32 (1, 16, 16, 3), this model takes uint8 (N, 16, 16, 3)"),
        (pictures(1)[0], "input is uint8 (16, 16, 3), this model takes uint8 (N, 16, 16, 3)"),
        (pictures(1)[:, :8], "input is uint8 (1, 8, 16, 3), this model takes uint8 (N, 16, 16, 3)"),
        (pictures(0), "batch of 0 pictures: it must be 1 to 256"),
        (pictures(1).repeat(257, axis=0), "batch of 257 pictures: it must be 1 to 256"),
    ],
)
def test_inputs_that_do_not_fit(session, batch, message):
    with pytest.raises(EngineError) as caught:
        session.infer(batch)
    assert str(caught.value) == message


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_closing_gives_memory_back_to_the_system(session):
    freed = [bytes(60_000) for _ in range(2000)]  # each too small for a mapping of its own
    kept = freed[-1]
    freed.clear()
    before = resident_bytes()
    session.close()
    assert before - resident_bytes() > 50 << 20, len(kept)


def test_closed_session_refuses(session):
    session.close()
    session.close()
    with pytest.raises(EngineError, match=r"^this session is closed; load the bundle again$"):
        session.infer(pictures(1))


@pytest.mark.parametrize("damage", [b"", b"no graph", tiny_graph()[:100], tiny_graph()[::-1]])
def test_damaged_graphs_are_refused_in_onnxruntimes_words(tmp_path: Path, damage):
    path = tmp_path / "model.onnx"
    path.write_bytes(damage)
    for model, name in ((damage, "graph"), (path, str(path))):
        with pytest.raises(EngineError) as caught:
            OrtSession(model, tiny_spec())
        assert str(caught.value).startswith(f"{name}: ONNX Runtime refuses it (")
        assert len(str(caught.value)) > len(name) + 35
        assert "\n" not in str(caught.value)


def test_unknown_operator_is_named():
    with pytest.raises(EngineError, match=r"refuses it .*NoSuchOperator"):
        OrtSession(one_node("NoSuchOperator", TensorProto.UINT8, ["N", 16, 16, 3]), tiny_spec())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            one_node("Identity", TensorProto.FLOAT, ["N", 3, 16, 16]),
            "graph: must take one tensor(uint8) of (N, H, W, C), it takes x: tensor(float) ['N', 3, 16, 16]",
        ),
        (
            one_node("Identity", TensorProto.UINT8, ["N", 16]),
            "graph: must take one tensor(uint8) of (N, H, W, C), it takes x: tensor(uint8) ['N', 16]",
        ),
        (
            one_node("Identity", TensorProto.UINT8, ["N", 16, 16, 3], "scores"),
            'graph: must have an output "logits", it has scores',
        ),
    ],
)
def test_graphs_of_another_contract_are_refused(graph, message):
    with pytest.raises(EngineError) as caught:
        OrtSession(graph, tiny_spec())
    assert str(caught.value) == message


def test_failure_while_running_is_quoted():
    model = onnx.load_from_string(tiny_graph())
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((3, 5), np.float32), "weight"))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", "H", "W", "C"]))
    del model.graph.output[1].type.tensor_type.shape.dim[:]
    del model.graph.value_info[:]
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", "D"]))
    with (
        OrtSession(model.SerializeToString(), tiny_spec()) as session,
        pytest.raises(EngineError, match=r"^ONNX Runtime failed \(.*Gemm"),
    ):
        session.infer(pictures(1))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_this_onnxruntime_lacks_is_refused(provider):
    if has_provider(provider):
        pytest.skip("this onnxruntime has it")
    with pytest.raises(EngineError, match=rf"^the installed onnxruntime has no {PROVIDERS[provider]}: pip uninstall"):
        OrtSession(tiny_graph(), tiny_spec(), provider=provider)


def test_a_provider_that_silently_became_the_cpu_is_refused(monkeypatch):
    """ONNX Runtime warns and goes on: here it believes in a CUDA that it does not have."""
    import onnxruntime

    if has_provider("cuda"):
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EngineError, match=r"asked for CUDAExecutionProvider, ONNX Runtime took CPUExecutionProvider"),
    ):
        OrtSession(tiny_graph(), tiny_spec(), provider="cuda")
