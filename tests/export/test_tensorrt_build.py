"""TensorRT-RTX's own parser and builder accept what is emitted, and refuse what is meant for CPUs."""

import onnx_graphs as graphs
import pytest

from edgetl.compile import PlanSettings, build_plan, product_named
from edgetl.errors import EngineError
from edgetl.quantize import QuantizeConfig, calibrate, write_fp16, write_int8

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of every form, by graph and form."""
    folder = tmp_path_factory.mktemp("forms")
    found = {}
    plans = {"everything": graphs.residual_cnn(channels=16), "matmul": graphs.cnn(["conv"], head="mlp_matmul")}
    for name, model in plans.items():
        float_model = graphs.saved(model, folder / f"{name}.fp32.onnx")
        pictures = graphs.pictures(24)
        calibration = calibrate(float_model, [pictures[:12], pictures[12:]], QuantizeConfig())
        found[name, "fp32"] = float_model.path
        found[name, "fp16"] = write_fp16(float_model, folder / f"{name}.fp16.onnx").path
        for target in ("tensorrt", "x86"):
            path = folder / f"{name}.int8-{target}.onnx"
            found[name, f"int8-{target}"] = write_int8(float_model, calibration, target, path).path
    return found


def built_for_all(path):
    return build_plan(path.read_bytes(), path.name, product_named("tensorrt-rtx"), PlanSettings(sms=(80, 86, 89, 120)))


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-tensorrt"])
@pytest.mark.parametrize("graph", ["everything", "matmul"])
def test_every_form_builds_without_a_warning(files, graph, form):
    built = built_for_all(files[graph, form])
    assert len(built.data) > 1000
    assert built.warnings == ()


def test_the_form_for_cpus_is_refused(files):
    with pytest.raises(EngineError, match="cannot read it"):
        built_for_all(files["everything", "int8-x86"])
