"""What only ``val`` shows: a form that loses too much there gets its costliest layers back, or there is no bundle.

The network tells red from green. Its training pictures are dim, so INT8 cuts what the first layer takes in at a level
that every picture of ``val`` exceeds: both colours look the same. The second layer's input reaches far enough, for
blue is amplified before it.
"""

import json

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgetl.cli.main import run
from edgetl.dataset import open_dataset
from edgetl.errors import GateError
from edgetl.export import ExportConfig, export_onnx_file
from edgetl.quantize import QuantizeConfig
from edgetl.spec import ModelSpec, PreprocessSpec

pytestmark = pytest.mark.slow

SIZE = (16, 16)


def tells_red_from_green():
    """conv1 (three channels with a little of each neighbour, blue times 20), conv2 (eight channels), then the mean."""
    b = graphs.Builder()
    first, second = np.zeros((3, 3, 3, 3), np.float32), np.zeros((8, 3, 3, 3), np.float32)
    for channel in range(3):
        first[channel, channel] = 0.0035  # rounds to nothing beside a weight of 1
        first[channel, channel, 1, 1] = second[channel, channel, 1, 1] = 1.0
    first[2] *= 20
    x = b.node("Conv", "images", b.constant("w1", first), name="conv1", pads=[1] * 4)
    x = b.node("Conv", b.node("Relu", x), b.constant("w2", second), name="conv2", pads=[1] * 4)
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x)))
    head = np.zeros((8, 2), np.float32)
    head[:2] = np.eye(2)
    b.node("Gemm", x, b.constant("head", head), name="dense1", output="scores")
    value = helper.make_tensor_value_info
    return b.model(
        [value("images", TensorProto.FLOAT, ["n", 3, *SIZE])], [value("scores", TensorProto.FLOAT, ["n", 2])]
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count, (dark, bright) in (("train", 40, (20, 60)), ("val", 12, (200, 250))):
        for index, name in enumerate(("red", "green")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 6, (*SIZE, 3), np.uint8)
                picture[..., index] += bright - 5
                picture[..., 1 - index] += dark
                picture[..., 2] = rng.integers(15, 20)
                Image.fromarray(picture).save(folder / f"{number}.png")
    return open_dataset(str(root))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "colours.onnx"
    onnx.save(tells_red_from_green(), path)
    preprocess = PreprocessSpec(size=SIZE, resize_to=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    return path, ModelSpec("colours", preprocess, ("red", "green"))


def export(network, photos, out, recorder, **options):
    quantize = QuantizeConfig("max", repair=False, **options)
    config = ExportConfig(int8=True, quantize=quantize, max_drop=0.01, seconds=0.02)
    return export_onnx_file(*network, photos, config, out, reporter=recorder)


def test_the_costliest_layer_is_given_back_where_only_val_shows_the_loss(network, photos, tmp_path, recorder, capsys):
    bundle = export(network, photos, tmp_path / "b.edgetl", recorder)
    spared = bundle.manifest["provenance"]["int8"]["spared"]
    assert spared == {"tensorrt": ["conv1"], "x86": ["conv1"], "arm": ["conv1"]}
    for variant in bundle.variants:
        assert variant.metrics["top1_drop"] == 0.0, variant.name
        if variant.precision == "int8":
            model = onnx.load(bundle.root / variant.file)
            assert [t.name for t in model.graph.initializer if t.name.endswith("_int8")] == ["w2_axis0_int8"]
    assert run(["inspect", str(bundle.root), "--layers", "--json", "-"]) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert {name: set(layer["in_float"].values()) for name, layer in layers.items()} == {
        "conv1": {"too sensitive"}, "conv2": set(), "dense1": {"last layer"},
    }  # fmt: skip
    assert layers["conv1"]["alone_db"] < layers["conv2"]["alone_db"]


def test_without_mixed_precision_there_is_no_bundle(network, photos, tmp_path, recorder):
    with pytest.raises(GateError, match=r"int8-tensorrt loses 50\.00 points of top-1 on 24 pictures, allowed are 1"):
        export(network, photos, tmp_path / "b.edgetl", recorder, mixed=False)
    assert list(tmp_path.iterdir()) == []


def test_what_the_user_keeps_is_named_as_such(network, photos, tmp_path, recorder, capsys):
    bundle = export(network, photos, tmp_path / "b.edgetl", recorder, keep_fp16=("conv1",), mixed=False)
    assert run(["inspect", str(bundle.root), "--layers"]) == 0
    out, err = capsys.readouterr()
    row = next(line for line in out.splitlines() if "conv1" in line)
    assert "kept by request" in row
    assert "no layer was tried alone" in err
