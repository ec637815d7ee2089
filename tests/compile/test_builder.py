"""The real TensorRT-RTX builder, ahead of time: what it builds, what it tells, and what it is refused."""

import dataclasses
import threading

import onnx
import onnx_graphs as graphs
import pytest
from tiny import tiny_graph, write_tiny_bundle

from edgetl import host
from edgetl.bundle import open_bundle
from edgetl.compile import PlanSettings, PlanStore, build_plan, listening, plan_for, product_named, write_plan
from edgetl.errors import BundleError, EngineError, InputError, MissingExtraError
from edgetl.quantize import QuantizeConfig, calibrate, write_int8

RTX = product_named("tensorrt-rtx")
AHEAD = PlanSettings(sms=(86, 89))


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture
def bundle(tmp_path):
    return open_bundle(write_tiny_bundle(tmp_path / "parts.edgetl", ("fp32", "fp16")))


def test_a_plan_and_its_kernels():
    model = graphs.cnn(["conv", "plain"])
    built = build_plan(model.SerializeToString(), "m.onnx", RTX, AHEAD)
    assert len(built.data) > 10_000
    assert built.warnings == built.left_to_gpu == ()
    assert set(built.report.weighted) == {n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
    assert {*built.report.weighted.values()} == {"Float"}
    assert built.report.conversions == 0
    assert built.seconds > 0
    assert built.timings is None  # this product does not time kernels while it builds


@pytest.mark.parametrize(
    ("settings", "smaller"),
    [(PlanSettings(max_batch=1, sms=(86,)), True), (PlanSettings(max_batch=64, best_batch=16, sms=(86,)), False)],
)
def test_settings_reach_the_builder(settings, smaller):
    model = graphs.cnn(["conv"]).SerializeToString()
    built = build_plan(model, "m.onnx", RTX, settings)
    sizes = {tensor.shape[0] for layer in built.report.layers for tensor in layer.inputs}
    assert (-1 in sizes) is not smaller  # one size is no range


def test_time_passes_visibly(monkeypatch):
    monkeypatch.setattr("edgetl.compile.builder._HEARTBEAT_S", 0.01)
    told = []
    build_plan(
        graphs.cnn(["conv"] * 4).SerializeToString(), "m.onnx", RTX, AHEAD, on_progress=lambda *a: told.append(a)
    )
    stages, steps, totals, texts = zip(*told, strict=True)
    assert {*stages} == {"building m.onnx"}
    assert list(steps) == sorted(steps)
    assert max(totals) > 0
    assert texts[0] == "0 s"
    assert not [t for t in threading.enumerate() if t.name.startswith("edgetl")]


def test_an_interruption_ends_the_build_at_its_next_step(monkeypatch):
    monkeypatch.setattr("edgetl.compile.builder._HEARTBEAT_S", 0.005)

    def interrupted(*told):
        raise KeyboardInterrupt

    model = graphs.cnn(["conv"] * 30).SerializeToString()
    with pytest.raises(KeyboardInterrupt):
        build_plan(model, "m.onnx", RTX, AHEAD, on_progress=interrupted)
    assert not [t for t in threading.enumerate() if t.name.startswith("edgetl")]


def test_messages_go_to_whoever_listens():
    trt = RTX.bindings()
    with listening(trt) as (log, outer):
        with listening(trt) as (same, inner):
            same.log(trt.ILogger.Severity.ERROR, "one\n  line")
        log.log(trt.ILogger.Severity.WARNING, "careful")
    log.log(trt.ILogger.Severity.ERROR, "nobody listens")
    assert same is log, "TensorRT keeps a pointer to the first logger: it must live for ever"
    assert (inner.errors, inner.warnings) == (["one line"], [])
    assert (outer.errors, outer.warnings) == (["one line"], ["careful"])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (b"", r"^m\.onnx: tensorrt-rtx cannot build it \(.*at least one output"),
        (b"not a graph", r"^m\.onnx: tensorrt-rtx cannot read it \("),
    ],
)
def test_what_is_no_graph_is_refused_in_the_parsers_words(graph, message):
    with pytest.raises(EngineError, match=message) as caught:
        build_plan(graph, "m.onnx", RTX, AHEAD)
    assert "\n" not in str(caught.value)


def test_a_form_for_cpus_is_refused_in_the_parsers_words(tmp_path):
    float_model = graphs.saved(graphs.cnn(["conv"]), tmp_path / "m.onnx")
    found = calibrate(float_model, [graphs.pictures(4)], QuantizeConfig("max", repair=False, mixed=False))
    int8 = write_int8(float_model, found, "x86", tmp_path / "x86.onnx")
    with pytest.raises(EngineError, match=r"^x86\.onnx: tensorrt-rtx cannot read it \("):
        build_plan(int8.path.read_bytes(), "x86.onnx", RTX, AHEAD)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_batch": 0}, "give 1 <= best <= most"),
        ({"best_batch": 9}, "batches of 9 at best and 8 at most"),
        ({"optimization_level": 6}, "it must be 0 to 5"),
        ({"dla_core": 0}, "a DLA takes one batch size only"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(InputError, match=message):
        PlanSettings(**fields)


def test_a_gpu_that_this_builder_does_not_know():
    with pytest.raises(InputError, match=r"^--sm 12: this tensorrt-rtx builds for 75, 80, 86, 89"):
        build_plan(tiny_graph(), "m.onnx", RTX, PlanSettings(sms=(12,)))


def test_a_dla_that_is_not_there():
    with pytest.raises(EngineError, match=r"^DLA 0: this machine has 0 of them$"):
        build_plan(tiny_graph(), "m.onnx", RTX, PlanSettings(max_batch=1, dla_core=0, sms=(86,)))


def test_too_little_memory_is_told_before_the_system_kills(monkeypatch):
    monkeypatch.setattr(host, "available_bytes", lambda: 300 << 20)
    with pytest.raises(EngineError, match=r"a build takes about 600 MiB, 300 MiB are free; close what runs beside it"):
        build_plan(tiny_graph(), "m.onnx", RTX, AHEAD)


def test_products_by_name():
    with pytest.raises(EngineError, match='"trt" builds no plans: it must be tensorrt or tensorrt-rtx'):
        product_named("trt")
    absent = dataclasses.replace(RTX, module="tensorrt_of_nobody")
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetl\[rtx\]'"):
        absent.bindings()
    if host.gpu_names():
        pytest.skip("TensorRT may be installed on a machine with a GPU")
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed"):
        product_named("tensorrt").bindings()


def test_a_plan_to_carry_says_for_what_it_was_built_and_nothing_of_this_machine(bundle, tmp_path):
    plan, record = write_plan(bundle, bundle.variant("fp16"), RTX, AHEAD, tmp_path / "plans")
    version = RTX.bindings().__version__
    assert plan.path.name.startswith(f"parts.fp16.tensorrt-rtx-{version}.sm86-89.")
    assert plan.parent == bundle.variant("fp16").sha256
    assert record["bundle"] == bundle.digest
    (path,) = (tmp_path / "plans").glob("*.json")
    assert '"machine": null' in path.read_text()


def test_a_plan_is_built_once_and_then_taken_from_the_cache(bundle, tmp_path):
    cache = PlanStore(tmp_path / "cache")
    variant = bundle.variant("fp16")
    first, second = (plan_for(bundle, variant, RTX, AHEAD, cache) for _ in range(2))
    assert (first.origin, second.origin) == ("built", "cached")
    assert first.data == second.data
    assert second.record["report"] == first.record["report"]
    (path,) = cache.root.glob("*.plan")
    path.write_bytes(first.data[:-1])
    third = plan_for(bundle, variant, RTX, AHEAD, cache)
    assert (third.origin, third.data == first.data) == ("built", True)
    assert "sha256 differs" in third.notes[0]


def test_where_nothing_may_be_built_the_reasons_are_told(bundle, tmp_path):
    cache, empty = PlanStore(tmp_path / "cache"), tmp_path / "plans"
    empty.mkdir(mode=0o700)
    variant = bundle.variant("fp16")
    with pytest.raises(EngineError, match=r"has no plan of fp16 here \(.*plans: has no plans\); edgetl compile makes"):
        plan_for(bundle, variant, RTX, AHEAD, cache, plans=PlanStore(empty), build=False)
    assert not cache.root.exists()


def test_a_carried_plan_is_taken_before_the_cache_is_asked(bundle, tmp_path):
    variant = bundle.variant("fp16")
    write_plan(bundle, variant, RTX, AHEAD, tmp_path / "plans")
    found = plan_for(
        bundle, variant, RTX, PlanSettings(sms=(89,)), PlanStore(tmp_path / "cache"),
        plans=PlanStore(tmp_path / "plans"), build=False,
    )  # fmt: skip
    assert (found.origin, found.notes) == ("carried", ())


def test_a_damaged_graph_is_not_built(bundle, tmp_path):
    variant = bundle.variant("fp16")
    (bundle.root / variant.file).write_bytes(onnx.ModelProto().SerializeToString())
    with pytest.raises(BundleError, match="is damaged or was replaced"):
        plan_for(bundle, variant, RTX, AHEAD, PlanStore(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.plan"))
