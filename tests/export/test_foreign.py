"""Users' own ONNX files: a float classifier of normalized pictures becomes one like ours."""

import dataclasses

import numpy as np
import onnx
import onnx_graphs as graphs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgetl.errors import EdgetlError, ExportError, QuantizationError
from edgetl.export.foreign import onnx_from_foreign
from edgetl.quantize import QuantizeConfig, calibrate, write_int8
from edgetl.runtime.ort import OrtSession
from edgetl.spec import ModelSpec, PreprocessSpec

SIZE = (16, 16)
value = helper.make_tensor_value_info


def classifier(
    *, batch=1, reshape="initializer", opset=13, classes=graphs.CLASSES, channels=3, input_name="images", names=True
):
    """A float32 NCHW classifier as torch's older exporter leaves it: BatchNorm not folded, a fixed Reshape."""
    b = graphs.Builder(3)
    x = b.conv(input_name, channels, 8)
    norm = [b.constant(f"bn_{k}", b.rng.uniform(0.5, 1.5, 8).astype(np.float32)) for k in ("scale", "b", "mean", "var")]
    x = b.relu(b.node("BatchNormalization", x, *norm, epsilon=1e-3))
    x = b.node("GlobalAveragePool", b.relu(b.conv(x, 8, 8, stride=2)))
    to = np.array([batch if isinstance(batch, int) else 0, -1], np.int64)
    if reshape == "initializer":
        x = b.node("Reshape", x, b.constant("to", to))
    elif reshape == "node":
        b.nodes.append(helper.make_node("Constant", [], ["to"], name="to", value=graphs.numpy_helper.from_array(to)))
        x = b.node("Reshape", x, "to")
    else:
        x = b.node("Flatten", x)
    b.dense(x, 8, classes, "gemm_trans_b", output="scores")
    if not names:
        for node in b.nodes:
            node.name = ""
    return b.model(
        [value(input_name, TensorProto.FLOAT, [batch, channels, *SIZE])],
        [value("scores", TensorProto.FLOAT, [batch, classes])],
        opset=opset,
    )


def normalized(pictures, spec):
    """What the spec says the user's network wants, computed by hand."""
    p = spec.preprocess
    x = (pictures.astype(np.float64) * p.scale - np.array(p.mean)) / np.array(p.std)
    return x.transpose(0, 3, 1, 2).astype(np.float32)


def original_answers(model, pictures, spec):
    """One by one, for the batch may be fixed."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[None]})[0] for x in normalized(pictures, spec)])


def adapted(model, tmp_path, spec):
    source = tmp_path / "user.onnx"
    source.write_bytes(model.SerializeToString())
    return onnx_from_foreign(source, spec, tmp_path / "model.fp32.onnx")


def check(model, result, spec):
    pictures = graphs.pictures(5)
    expected = original_answers(model, pictures, spec)
    with OrtSession(result.path, spec, threads=1) as session:
        for count in (1, 2, 5):
            got = session.infer(pictures[:count])
            np.testing.assert_allclose(got["logits"], expected[:count], rtol=1e-4, atol=1e-4 * np.abs(expected).max())
            assert got["embedding"].shape == (count, 8)
    written = onnx.load(result.path)
    onnx.checker.check_model(written, full_check=True)
    assert [o.version for o in written.opset_import] == [18]
    names = [n.name for n in written.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert not graphs.nodes_of(written, "BatchNormalization")
    assert (result.precision, result.target) == ("fp32", "any")
    return written


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("reshape", ["initializer", "node", "none"])
@pytest.mark.parametrize("batch", [1, "N"])
def test_the_adapted_graph_agrees_with_the_original(tmp_path, batch, reshape, names):
    model = classifier(batch=batch, reshape=reshape, names=names)
    spec = graphs.spec()
    written = check(model, adapted(model, tmp_path, spec), spec)
    assert [n.op_type for n in written.graph.node[:4]] == ["Cast", "Transpose", "Sub", "Div"]


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_other_opsets_are_converted(tmp_path, opset):
    model = classifier(opset=opset)
    check(model, adapted(model, tmp_path, graphs.spec()), graphs.spec())


@pytest.mark.parametrize("name", ["pictures", "logits_in", "edgetl_input"])
def test_the_users_input_may_have_any_name(tmp_path, name):
    model = classifier(input_name=name)
    check(model, adapted(model, tmp_path, graphs.spec()), graphs.spec())


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 1 / 127.5])
def test_scale_mean_and_std_are_those_of_the_spec(tmp_path, scale):
    spec = graphs.spec()
    preprocess = dataclasses.replace(spec.preprocess, scale=scale, mean=(0.5, 0.1, 1.0), std=(0.5, 2.0, 1.0))
    spec = dataclasses.replace(spec, preprocess=preprocess)
    model = classifier()
    check(model, adapted(model, tmp_path, spec), spec)


def test_grey_pictures(tmp_path):
    preprocess = PreprocessSpec(
        size=SIZE, resize_to=None, crop="none", mode="squash", color="L", mean=(0.4,), std=(0.2,)
    )
    spec = ModelSpec("grey", preprocess, tuple("abcde"))
    model = classifier(channels=1)
    result = adapted(model, tmp_path, spec)
    pictures = graphs.pictures(3)[..., :1]
    with OrtSession(result.path, spec, threads=1) as session:
        got = session.infer(pictures)["logits"]
    np.testing.assert_allclose(got, original_answers(model, pictures, spec), rtol=1e-4, atol=1e-4)


def test_the_embedding_is_what_the_last_layer_sees(tmp_path):
    model = classifier()
    written = onnx.load(adapted(model, tmp_path, graphs.spec()).path)
    weight, bias = (graphs.constants_of(model)[f"dense1_{k}"] for k in ("weight", "bias"))
    got = graphs.run(written, graphs.pictures(4))
    np.testing.assert_allclose(got["embedding"] @ weight.T + bias, got["logits"], rtol=1e-4, atol=1e-5)


def test_a_graph_that_already_takes_pictures_keeps_its_form(tmp_path):
    model = graphs.residual_cnn()
    result = adapted(model, tmp_path, graphs.spec())
    pictures = graphs.pictures(4)
    expected, got = graphs.run(model, pictures), graphs.run(onnx.load(result.path), pictures)
    for name in ("logits", "embedding"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_adapted_graph_can_be_quantized(tmp_path):
    model = classifier(names=False)
    result = adapted(model, tmp_path, graphs.spec())
    calibration = calibrate(result, [graphs.pictures(16)], QuantizeConfig(method="max"))
    pictures = graphs.pictures(8)
    expected = original_answers(model, pictures, graphs.spec())
    for target in ("tensorrt", "x86", "arm"):
        int8 = write_int8(result, calibration, target, tmp_path / f"{target}.onnx")
        with OrtSession(int8.path, int8.spec, threads=1) as session:
            assert graphs.sqnr(expected, session.infer(pictures)["logits"]) > 25


def test_torchs_older_exporter(tmp_path):
    torch = pytest.importorskip("torch")
    import warnings

    torch.manual_seed(0)
    nn = torch.nn
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = body, nn.Linear(8, graphs.CLASSES)

        def forward(self, x):
            x = self.body(x)
            return self.head(x.view(x.shape[0], -1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this exporter is the older one
        torch.onnx.export(
            Net().eval(), torch.zeros(1, 3, *SIZE), str(tmp_path / "torch.onnx"), dynamo=False, opset_version=13
        )
    model = onnx.load(tmp_path / "torch.onnx")
    check(model, adapted(model, tmp_path, graphs.spec()), graphs.spec())


def refused(model, tmp_path, spec, error=ExportError):
    with pytest.raises(error) as caught:
        adapted(model, tmp_path, spec)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "user.onnx")), message
    assert "\n" not in message
    assert not (tmp_path / "model.fp32.onnx").exists() or "batch" in message
    return message


def test_two_inputs_are_refused(tmp_path):
    model = classifier()
    model.graph.input.append(value("mask", TensorProto.FLOAT, [1, 3]))
    assert "has 2 inputs (images, mask), it must have one" in refused(model, tmp_path, graphs.spec())


def test_initializers_that_older_files_list_as_inputs_do_not_count(tmp_path):
    model = classifier()
    for tensor in model.graph.initializer:
        model.graph.input.append(value(tensor.name, tensor.data_type, list(tensor.dims)))
    check(model, adapted(model, tmp_path, graphs.spec()), graphs.spec())


def test_another_number_of_channels_is_refused(tmp_path):
    message = refused(classifier(channels=1), tmp_path, graphs.spec())
    assert "its input images has shape [1, 1, 16, 16], the spec says (N, 3, 16, 16); mend preprocess.size" in message


def test_another_size_is_refused(tmp_path):
    message = refused(classifier(), tmp_path, graphs.spec(size=(32, 16)))
    assert "its input images has shape [1, 3, 16, 16], the spec says (N, 3, 32, 16)" in message


def test_another_size_of_a_uint8_graph_is_refused(tmp_path):
    message = refused(graphs.cnn(["conv"]), tmp_path, graphs.spec(size=(32, 32)))
    assert "its input pictures has shape [0, 16, 16, 3], the spec says (N, 32, 32, 3)" in message


def test_another_number_of_labels_is_refused(tmp_path):
    message = refused(classifier(), tmp_path, graphs.spec(classes=7))
    assert "its first output scores has shape [1, 5], the spec has 7 labels: it must be (N, 7)" in message


def test_an_input_of_another_type_is_refused(tmp_path):
    b = graphs.Builder()
    b.dense(b.node("Flatten", b.node("Cast", "x", to=1)), 3 * 16 * 16, graphs.CLASSES, "gemm", output="scores")
    model = b.model([value("x", TensorProto.INT64, [1, 3, *SIZE])], [value("scores", 1, [1, graphs.CLASSES])])
    assert "takes neither float32 (N, C, H, W) nor uint8 (N, H, W, C)" in refused(model, tmp_path, graphs.spec())


def test_an_inner_tensor_in_the_way_is_refused(tmp_path):
    model = classifier()
    for node in model.graph.node:
        node.input[:] = ["logits" if n == "relu1_out" else n for n in node.input]
        node.output[:] = ["logits" if n == "relu1_out" else n for n in node.output]
    assert 'an inner tensor is named "logits"; rename it' in refused(model, tmp_path, graphs.spec())


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path):
    """A Reshape that moves pictures of a batch into each other."""
    b = graphs.Builder()
    x = b.node("Reshape", "images", b.constant("to", np.array([2, 3 * 16 * 8], np.int64)))
    x = b.node("ReduceMean", x, b.constant("axes", np.array([0], np.int64)), keepdims=1)
    b.dense(x, 3 * 16 * 8, graphs.CLASSES, "gemm", output="scores")
    model = b.model([value("images", 1, [1, 3, *SIZE])], [value("scores", 1, [1, graphs.CLASSES])])
    message = refused(model, tmp_path, graphs.spec())
    assert "export it with a dynamic batch" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no graph; is it an ONNX file?"), (b"PK not a network at all", "is not an ONNX file")],
)
def test_what_is_no_onnx_is_refused(tmp_path, content, message):
    source = tmp_path / "user.onnx"
    source.write_bytes(content)
    with pytest.raises(QuantizationError) as caught:
        onnx_from_foreign(source, graphs.spec(), tmp_path / "model.fp32.onnx")
    assert str(caught.value).startswith(f"{source}: {message}")
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(EdgetlError, match=r"user\.onnx: cannot be read \(No such file"):
        onnx_from_foreign(tmp_path / "user.onnx", graphs.spec(), tmp_path / "model.fp32.onnx")


def test_weights_in_other_files_are_refused(tmp_path):
    source = tmp_path / "user.onnx"
    onnx.save(classifier(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(QuantizationError, match=r"user\.onnx: keeps weights in other files"):
        onnx_from_foreign(source, graphs.spec(), tmp_path / "model.fp32.onnx")


@pytest.mark.parametrize("identity", [False, True])
def test_a_softmax_at_the_end_is_left_to_the_runtime(tmp_path, identity):
    model, plain = classifier(), classifier()
    graph = model.graph
    graph.node.append(helper.make_node("Softmax", ["scores"], ["raw"], name="softmax", axis=-1))
    graph.node.append(helper.make_node("Identity", ["raw"], ["probabilities"], name="end"))
    if not identity:
        del graph.node[-1]
        graph.node[-1].output[0] = "probabilities"
    graph.output[0].name = "probabilities"
    spec = graphs.spec()
    written = check(plain, adapted(model, tmp_path, spec), spec)
    assert not graphs.nodes_of(written, "Softmax")


def test_a_softmax_that_something_else_reads_stays(tmp_path):
    model = classifier()
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["soft"], name="softmax", axis=-1))
    model.graph.node.append(helper.make_node("Mul", ["soft", "soft"], ["squares"], name="mul"))
    model.graph.output[0].name = "squares"
    assert graphs.nodes_of(onnx.load(adapted(model, tmp_path, graphs.spec()).path), "Softmax")


def test_a_uint8_graph_casts_before_it_transposes(tmp_path):
    """TensorRT moves no uint8."""
    spec = graphs.spec()
    model = onnx.load(adapted(classifier(), tmp_path, spec).path)
    cast, transpose = model.graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ("Cast", "Transpose")
    cast.op_type, transpose.op_type = "Transpose", "Cast"
    attributes = list(cast.attribute)
    del cast.attribute[:]
    cast.attribute.extend(transpose.attribute)
    del transpose.attribute[:]
    transpose.attribute.extend(attributes)
    pictures = graphs.pictures(3)
    expected = graphs.run(model, pictures)
    source = tmp_path / "uint8.onnx"
    onnx.save(model, source)
    result = onnx_from_foreign(source, spec, tmp_path / "again.onnx")
    written = onnx.load(result.path)
    assert [n.op_type for n in written.graph.node[:2]] == ["Cast", "Transpose"]
    np.testing.assert_allclose(graphs.run(written, pictures)["logits"], expected["logits"], rtol=1e-5)


def test_a_fixed_batch_of_eight_is_refused_in_words(tmp_path):
    assert "export it with a dynamic batch" in refused(classifier(batch=8), tmp_path, graphs.spec())
