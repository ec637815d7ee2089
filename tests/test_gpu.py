"""The acceptance of a machine with a GPU: ``pytest -m gpu`` runs what the machine has, and says what it lacks."""

import statistics

import numpy as np
import pytest
from tiny import noise, tiny_graph, tiny_spec

import edgetl
from edgetl import gpu
from edgetl.bundle import open_bundle
from edgetl.compile import PlanSettings, PlanStore, plan_for, product_named
from edgetl.errors import EngineError, MissingExtraError
from edgetl.preprocess import preprocess
from edgetl.runtime.cuda import Buffer, Stream
from edgetl.runtime.ort import OrtSession, has_provider
from edgetl.runtime.race import race
from edgetl.runtime.trt import TrtSession

ABSENCE = gpu.absence()
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(ABSENCE is not None, reason=f"no GPU: {ABSENCE}")]


# --- CUDA


def test_facts():
    found = gpu.current_gpu()
    assert found.sm >= 50
    assert found.memory_bytes > 1 << 30
    assert found.multiprocessors > 0
    assert found.memory_bus_bits >= 64
    assert found.l2_bytes > 0
    assert found.shared_bytes >= 48 << 10
    assert "\x00" not in found.name
    assert gpu.driver_version() >= 11_000


@pytest.mark.parametrize("shared", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
def test_what_goes_up_comes_down(shared, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, (5, 33, 7)).astype(dtype)
    with Stream() as stream:
        there, back = Buffer(values.shape, dtype, shared=shared), Buffer(values.shape, dtype, shared=shared)
        there.host[:] = values
        back.host[:] = 0
        there.upload(5, stream)
        on_device(there, back, values.nbytes, stream)
        back.download(3, stream)
        stream.synchronize()
        np.testing.assert_array_equal(back.host[:3], values[:3])
        assert shared or not back.host[3:].any()  # rows that were not asked for
        there.close()
        back.close()


def on_device(source, to, count, stream):
    """Queues a copy from one buffer's device side to another's."""
    runtime = gpu.cuda()
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    gpu.call(runtime.cudaMemcpyAsync(to.device, source.device, count, kind, stream.handle))


@pytest.mark.parametrize("shared", [False, True], ids=["own memory", "shared memory"])
def test_a_recorded_graph_repeats_its_work_on_new_values(shared):
    with Stream() as stream:
        there, back = Buffer((4, 1000), np.float32, shared=shared), Buffer((4, 1000), np.float32, shared=shared)

        def work():
            there.upload(4, stream)
            on_device(there, back, there.host.nbytes, stream)
            back.download(4, stream)

        back.host[:] = -1
        graph = stream.capture(work)
        stream.synchronize()
        assert (back.host == -1).all(), "recording must not run anything"
        for value in range(5):
            there.host[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (back.host == value).all()
        graph.close()
        graph.close()
        there.close()
        back.close()


def test_a_recording_that_fails_leaves_the_stream_usable():
    with Stream() as stream:
        with pytest.raises(ZeroDivisionError):
            stream.capture(lambda: 1 / 0)
        with pytest.raises(EngineError, match=r"^CUDA: .*cudaErrorStreamCapture"):
            stream.capture(stream.synchronize)  # to wait inside a recording is forbidden
        buffer = Buffer((2,), np.float32, shared=False)
        buffer.host[:] = (1, 2)
        buffer.upload(2, stream)
        stream.synchronize()
        buffer.close()


def test_memory_is_given_back():
    free, _ = gpu.call(gpu.cuda().cudaMemGetInfo())
    for _ in range(20):
        buffer = Buffer((64, 1 << 20), np.uint8, shared=False)
        buffer.close()
    after, _ = gpu.call(gpu.cuda().cudaMemGetInfo())
    assert free - after < 64 << 20


def test_more_than_there_is_is_refused_in_cudas_words():
    with pytest.raises(EngineError, match=r"^CUDA: out of memory \(cudaErrorMemoryAllocation\)"):
        Buffer((gpu.current_gpu().memory_bytes // (1 << 20) * 2, 1 << 20), np.uint8, shared=False)


def test_graph_launches_cost_less_than_single_copies():
    """What a graph is for: a hundred small operations are launched at once."""
    import time

    with Stream() as stream:
        one, other = Buffer((1, 64), np.uint8, shared=False), Buffer((1, 64), np.uint8, shared=False)

        def work():
            for _ in range(100):
                on_device(one, other, 64, stream)

        def median(run):
            times = []
            for _ in range(50):
                start = time.perf_counter()
                run()
                stream.synchronize()
                times.append(time.perf_counter() - start)
            return statistics.median(times)

        graph = stream.capture(work)
        assert median(lambda: graph.launch(stream)) < median(work)
        graph.close()
        one.close()
        other.close()


# --- torch


def test_finetuning_runs_on_the_gpu_and_learns(new_digits, transfer_config, tmp_path, recorder):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no CUDA")
    from edgetl.finetune import finetune, open_run

    torch.cuda.reset_peak_memory_stats()
    run = finetune(new_digits, transfer_config, tmp_path / "run", reporter=recorder)
    assert torch.cuda.max_memory_allocated() > 1 << 20
    import json

    metrics = json.loads((run.root / "metrics.json").read_text())
    assert metrics["val"]["top1"] > 0.85
    assert open_run(run.root)


# --- ONNX Runtime on the GPU


def test_onnxruntimes_cuda_answers_as_its_cpu():
    if not has_provider("cuda"):
        pytest.skip("this onnxruntime has no CUDA: pip install 'edgetl[cuda]'")
    batch = np.stack([noise(16, 16, seed=i) for i in range(3)])
    with (
        OrtSession(tiny_graph(), tiny_spec(), provider="cuda") as there,
        OrtSession(tiny_graph(), tiny_spec()) as here,
    ):
        np.testing.assert_allclose(there.infer(batch)["logits"], here.infer(batch)["logits"], rtol=1e-3)


# --- TensorRT


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def product(request):
    found = product_named(request.param)
    try:
        found.bindings()
    except (MissingExtraError, EngineError) as error:
        pytest.skip(str(error))
    if request.param == "tensorrt-rtx" and gpu.current_gpu().sm in (90, 100, 103):
        pytest.skip(f"TensorRT-RTX does not support SM {gpu.current_gpu().sm}")
    return found


@pytest.fixture(scope="module")
def ready(product, bundle_path, tmp_path_factory):
    """Plans of both graphs, built for this GPU."""
    bundle, cache = open_bundle(bundle_path), PlanStore(tmp_path_factory.mktemp("plans") / product.name)
    return {
        name: plan_for(bundle, bundle.variant(name), product, PlanSettings(), cache)
        for name in ("fp16", "int8-tensorrt")
    }


@pytest.fixture(scope="module")
def batch(bundle_path, new_digits):
    spec = open_bundle(bundle_path).spec
    return np.stack([preprocess(item.path, spec.preprocess) for item in new_digits.split("val")[:160]])


def answers(session, batch):
    size = session.max_batch
    return np.concatenate([session.infer(batch[i : i + size])["logits"] for i in range(0, len(batch), size)])


def test_fp16_is_within_a_hundredth_of_onnxruntime(product, ready, batch, bundle_path):
    bundle = open_bundle(bundle_path)
    with TrtSession(ready["fp16"].data, bundle.spec, product) as session:
        got = answers(session, batch)
    with OrtSession(bundle.read(bundle.variant("fp32")), bundle.spec) as session:
        expected = answers(session, batch)
    assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()


def test_int8_decides_as_onnxruntimes_fake_quantization(product, ready, batch, bundle_path):
    bundle = open_bundle(bundle_path)
    with TrtSession(ready["int8-tensorrt"].data, bundle.spec, product) as session:
        got = answers(session, batch)
        assert session.layers()
    with OrtSession(bundle.read(bundle.variant("int8-tensorrt")), bundle.spec, fake_quant=True) as session:
        expected = answers(session, batch)
    margin = np.sort(expected, axis=1)
    clear = margin[:, -1] - margin[:, -2] > 0.02 * np.abs(expected).max()  # nearer than that, rounding decides
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(got.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


def test_latency_is_sane(product, ready, bundle_path):
    bundle = open_bundle(bundle_path)
    with (
        TrtSession(ready["fp16"].data, bundle.spec, product) as planned,
        OrtSession(bundle.read(bundle.variant("fp32")), bundle.spec, threads=1) as cpu,
    ):
        result = race({"planned": planned, "cpu": cpu})
    assert 0.01 < result.median_ms["planned"] < 20
    assert planned.eager_because == ""


def test_load_takes_the_faster_plan(product, bundle_path, new_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    item = new_digits.split("val")[0]
    with edgetl.load(bundle_path, engine=product.name) as classify, edgetl.load(bundle_path, engine="cpu") as cpu:
        assert classify.engine == product.name
        assert "the fastest here (" in classify.reason
        assert classify(item.path).label == cpu(item.path).label
