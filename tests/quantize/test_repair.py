"""Repairs against whole networks: errors of the mean go, answers come nearer."""

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rewrite import check_pairs

from edgetl.quantize.graph import Graph
from edgetl.quantize.moments import geometry_of, input_moments
from edgetl.quantize.observe import observe
from edgetl.quantize.placement import place, weight_axis
from edgetl.quantize.repair import corrected_biases, rounded_layers
from edgetl.quantize.rewrite import QuantizedLayer, activation_parameters, quantize_graph
from edgetl.quantize.shifts import input_shifts
from edgetl.quantize.targets import TARGETS, target_named

TENSORRT = target_named("tensorrt")


class Case:
    """A network with everything that repairs need."""

    def __init__(self, plan, *, head="gemm", count=32):
        self.model = graphs.cnn(plan, head=head)
        self.graph = Graph(self.model)
        self.pictures = graphs.pictures(count)
        self.placement = place(self.graph, TENSORRT)
        nodes = {node.name: node for node in self.graph.nodes}
        self.nodes = [nodes[name] for name in self.placement.weights]
        known = [node for node in self.nodes if geometry_of(self.graph, node) is not None]
        self.moments = input_moments(self.model, known, lambda: [self.pictures], threads=1)
        seen = observe(self.model, self.placement.tensors(self.graph), [self.pictures], threads=1)
        self.ranges = {name: (found.low, found.high) for name, found in seen.items()}

    def quantized(self, layers, target=TENSORRT):
        return quantize_graph(self.graph, self.placement, self.ranges, target, layers)

    def sqnr(self, model):
        before = graphs.run(self.model, self.pictures)["logits"]
        return graphs.sqnr(before, graphs.run(model, self.pictures, disable_quant_qdq="1")["logits"])


@pytest.fixture(scope="module")
def case():
    return Case(["conv", "residual", "conv", "plain", "conv"])


def coarse(layers):
    """Weights of 4 bits, where errors are large enough to be seen."""
    found = {}
    for name, layer in layers.items():
        values = np.clip(np.round(layer.values / 17.0), -7, 7).astype(np.int8)
        found[name] = QuantizedLayer(values, layer.scale * np.float32(17))
    return found


def test_plain_rounding_is_what_the_rewriter_does_by_itself(case):
    layers = rounded_layers(case.graph, case.nodes, case.moments, compensate=False)
    assert layers.keys() == {node.name for node in case.nodes}
    assert case.quantized(layers).SerializeToString() == case.quantized({}).SerializeToString()


def test_the_mean_error_of_a_layer_goes_into_its_bias(case):
    """With one layer in coarse integers, the mean of its output over pictures is what it was."""
    plain = coarse(rounded_layers(case.graph, case.nodes, case.moments, compensate=False))
    corrected = corrected_biases(case.graph, plain, case.moments)
    names = [node.output[0] for node in case.nodes]
    before = graphs.run(graphs.with_outputs(case.model, names), case.pictures)
    for node in case.nodes:
        alone = place(case.graph, TENSORRT, spared=[n.name for n in case.nodes if n is not node])
        errors = []
        for layers in (plain, corrected):
            model = quantize_graph(case.graph, alone, case.ranges, TENSORRT, layers)
            after = graphs.run(graphs.with_outputs(model, [node.output[0]]), case.pictures, disable_quant_qdq="1")
            difference = after[node.output[0]] - before[node.output[0]]
            errors.append(np.abs(difference.mean(axis=(0, 2, 3))).max())
        assert errors[1] < 0.5 * errors[0], node.name


def test_compensated_rounding_brings_the_answers_nearer():
    """Weights of 8 bits hardly err on a small network: with 4 bits the gain is seen."""
    case = Case(["conv", "conv", "conv", "conv"])
    scores = {}
    for compensate in (False, True):
        layers = {}
        for name, layer in rounded_layers(case.graph, case.nodes, case.moments, compensate=False).items():
            layers[name] = QuantizedLayer(layer.values, layer.scale)
        if compensate:
            layers = rounded_layers(case.graph, case.nodes, case.moments, compensate=True)
        alone = quantize_graph(
            case.graph,
            type(case.placement)((), case.placement.weights, (), ()),
            case.ranges,
            TENSORRT,
            layers,
        )
        scores[compensate] = case.sqnr(alone)
    assert scores[True] > scores[False] + 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_shifts_are_what_rounding_does_to_the_mean(case, target):
    names = case.placement.tensors(case.graph)
    cut = {name: (low / 2, high / 2) for name, (low, high) in case.ranges.items() if name in names}
    found = input_shifts(case.graph, cut, target, [case.pictures[:20], case.pictures[20:]], threads=1)
    truth = graphs.run(graphs.with_outputs(case.model, list(cut)), case.pictures)
    for name, limits in cut.items():
        scale, zero = activation_parameters(limits, target)
        smallest, largest = target.levels
        q = np.clip(np.round(truth[name] / scale) + int(zero), smallest, largest)
        expected = ((q - int(zero)) * scale - truth[name]).mean(axis=(0, 2, 3))
        assert found[name] == pytest.approx(expected, abs=float(scale) / 50 + 1e-5), name


def test_a_layer_without_a_bias_gets_one_and_a_matmul_none():
    case = Case(["conv"], head="mlp_matmul")
    layers = corrected_biases(
        case.graph, rounded_layers(case.graph, case.nodes, case.moments, compensate=True), case.moments
    )
    assert layers["dense1"].bias_change is None
    assert layers["conv1"].bias_change.shape == (8,)
    model = graphs.cnn(["conv"])
    del graphs.nodes_of(model, "Conv")[1].input[2:]
    graph = Graph(model)
    node = next(n for n in graph.nodes if n.name == "conv1")
    moments = input_moments(model, [node], lambda: [graphs.pictures(8)], threads=1)
    layers = corrected_biases(graph, rounded_layers(graph, [node], moments, compensate=False), moments)
    seen = observe(model, place(graph, TENSORRT).tensors(graph), [graphs.pictures(8)], threads=1)
    ranges = {name: (found.low, found.high) for name, found in seen.items()}
    result = quantize_graph(graph, place(graph, TENSORRT), ranges, TENSORRT, layers)
    conv = next(n for n in graphs.nodes_of(result, "Conv") if n.name == "conv1")
    assert graphs.constants_of(result)[conv.input[2]] == pytest.approx(layers["conv1"].bias_change, abs=1e-6)


def test_a_shared_weight_is_rounded_plainly_for_both():
    model = graphs.cnn(["conv", "conv"])
    graphs.nodes_of(model, "Conv")[2].input[1] = "conv1_weight"
    graph = Graph(model)
    nodes = [n for n in graph.nodes if n.op_type == "Conv"]
    moments = input_moments(model, nodes, lambda: [graphs.pictures(8)], threads=1)
    assert rounded_layers(graph, nodes, moments, compensate=True).keys() == {"stem1"}


def test_a_bias_that_would_overflow_drops_the_repair():
    """Integer kernels hold a bias as int32 at scale times scale: a scale that is too small is not kept."""
    case = Case(["conv"])
    layers = rounded_layers(case.graph, case.nodes, case.moments, compensate=True)
    tiny = {name: QuantizedLayer(layer.values, layer.scale * 1e-12, None) for name, layer in layers.items()}
    target = target_named("x86")
    seen = observe(case.model, place(case.graph, target).tensors(case.graph), [case.pictures], threads=1)
    ranges = {name: (found.low, found.high) for name, found in seen.items()}
    result = quantize_graph(case.graph, place(case.graph, target), ranges, target, tiny)
    assert (
        graphs.sqnr(graphs.run(case.model, case.pictures)["logits"], graphs.run(result, case.pictures)["logits"]) > 20
    )


@settings(deadline=None, max_examples=8)
@given(plan=st.lists(st.sampled_from(graphs.BLOCKS), max_size=4), head=st.sampled_from(graphs.HEADS))
def test_whatever_is_repaired_the_graph_keeps_its_promises(plan, head):
    """Zero points of 0, finite scales, one pair for a tensor, a scale for each output channel, biases in float."""
    case = Case(plan, head=head, count=8)
    layers = rounded_layers(case.graph, case.nodes, case.moments, compensate=True)
    shifts = input_shifts(case.graph, case.ranges, TENSORRT, [case.pictures], threads=1)
    layers = corrected_biases(case.graph, layers, case.moments, shifts)
    model = case.quantized(layers)
    onnx.checker.check_model(model, full_check=True)
    constants, makers = check_pairs(model, TENSORRT)
    for node in model.graph.node:
        dq = makers.get(node.input[1]) if node.op_type in TENSORRT.weighted else None
        if dq is None:
            continue
        values, scale, zero = (constants[name] for name in dq.input)
        axis = weight_axis(node)
        assert [a.i for a in dq.attribute if a.name == "axis"] == [axis]
        assert scale.shape == zero.shape == (values.shape[axis],)
        assert (scale > 0).all()
        assert np.isfinite(scale).all()
        assert not zero.any()
        assert values.min() >= -127
        if len(node.input) > 2:
            assert constants[node.input[2]].dtype == np.float32
            assert np.isfinite(constants[node.input[2]]).all()
    assert case.sqnr(model) > 20
