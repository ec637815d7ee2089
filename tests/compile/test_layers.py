"""What the builder tells of its kernels; rtx_layers.log holds lines of TensorRT-RTX 1.7 for a MobileNetV3."""

import json
from pathlib import Path

import pytest

from edgetl.compile import EngineLayer, layers_of_inspector, layers_of_log, report_of
from edgetl.compile.layers import EngineTensor

LOG = Path(__file__).with_name("rtx_layers.log").read_text()


def test_lines_of_the_log():
    shape_call, cast, replicate, conv, glue = layers = layers_of_log(LOG)
    assert (shape_call.kind, shape_call.inputs, shape_call.onnx) == ("shape_call", (), ())
    assert cast.inputs == (EngineTensor("pictures", "UInt8", "(Linear) Row major linear format", (-1, 224, 224, 3)),)
    assert cast.onnx == ("node__to_copy", "node_permute", "node_div", "node_sub_2", "q_div")
    assert conv.inputs[0] == replicate.outputs[0]
    assert (conv.inputs[0].dtype, conv.inputs[0].format) == ("Int8", "(NHWC) Channel major format")
    assert [t.dtype for t in glue.outputs] == ["Half", "Half"]
    assert [layer.converts for layer in layers] == [False, False, True, False, False]
    assert dict(report_of(layers, ["node_Conv_653"]).weighted) == {"node_Conv_653": "Int8"}


def test_lines_of_tensorrt_ten():
    """Of a public build log of TensorRT 10; the tactic's name shortened."""
    conv = "/features/features.0/Conv"
    taken, copied, made = (
        f"{{ Name: {name}, Location: Device, Dimensions: [1,3,224,224], Format/Datatype: {dtype} }}"
        for name, dtype in (("input", "Half"), ("Reformatted Input Tensor 0", "Int8"), ("relu_output_0", "Half"))
    )
    text = (
        f"Layers:\nName: Reformatting CopyNode for Input Tensor 0 to {conv}, LayerType: Reformat, Inputs: [ {taken}], "
        f"Outputs: [ {copied}], ParameterType: Reformat, Origin: REFORMAT, StreamId: 0, Metadata: \n"
        f"Name: {conv} + relu, LayerType: CaskConvolution, Inputs: [ {copied}], Outputs: [ {made}], ParameterType: "
        'Convolution, Kernel: [11,11], PrePadding: [2,2], Weights: {"Type": "Half", "Count": 23232}, HasBias: 1, '
        "Activation: RELU, TacticName: sm80_xmma_fprop, TacticValue: 0x280b, StreamId: 0, Metadata: "
        f"[ONNX Layer: {conv}][ONNX Layer: relu]"
    )
    copy, fused = layers_of_log(text)
    assert (copy.kind, copy.converts, copy.inputs[0].dtype, copy.outputs[0].dtype) == ("Reformat", True, "Half", "Int8")
    assert (fused.onnx, fused.inputs[0].shape) == ((conv, "relu"), (1, 3, 224, 224))
    report = report_of((copy, fused), [conv])
    assert (dict(report.weighted), report.conversions) == ({conv: "Int8"}, 1)


@pytest.mark.parametrize("text", ["", "Layers:\n", "Name: x, LayerType: y", "LayerType: " * 1000])
def test_other_text_has_no_layers(text):
    assert layers_of_log(text) == ()
    assert report_of((), ["conv1"]).weighted == {}


def test_the_inspectors_json_of_ten_and_of_eleven():
    """The fields that TensorRT 11's migration guide names: Format/Datatype was split in two."""
    told = {
        "Layers": [
            {"Name": "conv1 + relu", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv1]",
             "Inputs": [{"Name": "a", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Row major Int8 format"}],
             "Outputs": [{"Name": "b", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Row major linear FP32"}]},
            {"Name": "reformat", "LayerType": "Reformat",
             "Inputs": [{"Name": "b", "Dimensions": [1, 4, 8, 8], "Format": "Row major", "Datatype": "FP16"}],
             "Outputs": [{"Name": "c", "Dimensions": [1, 4, 8, 8], "Format": "Channel major", "Datatype": "FP16"}]},
            "only a name, where verbosity is low",
        ]
    }  # fmt: skip
    conv, reformat = layers_of_inspector(json.dumps(told))
    assert (conv.inputs[0].dtype, conv.outputs[0].dtype) == ("Int8", "Float")
    assert (reformat.inputs[0].dtype, reformat.converts) == ("Half", True)
    assert layers_of_inspector("{}") == ()


def chain(*types, side=None):
    """Convolutions one behind the other with the given input types; ``side`` are their map sizes."""
    layers = []
    for number, dtype in enumerate(types):
        size = (side or {}).get(number, 8)
        taken = EngineTensor(f"t{number}", dtype, "", (-1, 16, size, size))
        made = EngineTensor(f"f{number}", "Float", "", (-1, 16, size, size))
        following = types[number + 1] if number + 1 < len(types) else "Half"
        passed = EngineTensor(f"t{number + 1}", following, "", (-1, 16, size, size))
        layers.append(EngineLayer(f"kernel{number}", "correlation", (taken,), (made,), (f"conv{number}",)))
        layers.append(EngineLayer(f"glue{number}", "kgen", (made,), (passed,), (f"conv{number}", "relu")))
    return report_of(layers, [f"conv{n}" for n in range(len(types))])


@pytest.mark.parametrize(
    ("types", "islands"),
    [
        (["Int8", "Int8", "Int8"], ()),
        (["Half", "Int8", "Int8", "Half"], ()),  # float at the ends costs one conversion, not two
        (["Int8", "Half", "Int8"], (("conv1",),)),
        (["Int8", "Half", "Half", "Int8"], (("conv1", "conv2"),)),
        (["Int8", "Half", "Int8", "Float", "Int8"], (("conv1",), ("conv3",))),
        (["Half", "Half"], ()),
    ],
)
def test_islands_are_float_between_integers(types, islands):
    assert chain(*types).islands == islands


def test_a_single_position_is_no_island():
    assert chain("Int8", "Half", "Int8", side={1: 1}).islands == ()


def test_conversions_are_counted_and_the_graphs_order_does_not_matter():
    assert chain("Int8", "Int8", "Half").conversions == 1  # behind the first; float in, float out at the others
