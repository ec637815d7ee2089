"""The search for the smallest set of layers, on noises that are known."""

import numpy as np
import onnx_graphs as graphs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgetl.quantize.graph import Graph
from edgetl.quantize.judge import Judge, Score
from edgetl.quantize.placement import place
from edgetl.quantize.rewrite import QuantizedLayer, quantize_graph, weight_parameters
from edgetl.quantize.sensitivity import ENOUGH_DB, LayerCost, multiply_adds, rank_layers, smallest_set
from edgetl.quantize.targets import target_named

TENSORRT = target_named("tensorrt")


def db(noise):
    return float(-10 * np.log10(max(noise, 1e-30)))


def ranking_of(noises, shares=None):
    shares = shares or [1 / len(noises)] * len(noises)
    costs = [LayerCost(f"layer{i}", db(n), 0.0, s) for i, (n, s) in enumerate(zip(noises, shares, strict=True))]
    return sorted(costs, key=lambda cost: cost.sqnr_db)


class Additive:
    """A network whose layers' noises add up."""

    def __init__(self, noises, lost=lambda noise: 0):
        self.noises = {f"layer{i}": n for i, n in enumerate(noises)}
        self.lost = lost
        self.calls = 0

    def __call__(self, names):
        self.calls += 1
        noise = sum(n for name, n in self.noises.items() if name not in names)
        return Score(db(noise), 0.0, self.lost(noise), 0, 100)


def test_nothing_is_spared_or_ranked_where_all_is_well():
    def never():
        raise AssertionError("ranking costs a minute")

    assert smallest_set(never, Additive([1e-4, 1e-5]), 0.01) == ()


def test_the_one_that_spoils_it_is_spared():
    noises = [1e-4, 2e-2, 1e-4] + [1e-5] * 20
    evaluate = Additive(noises)
    assert smallest_set(lambda: ranking_of(noises), evaluate, 0.01) == ("layer1",)
    assert evaluate.calls == 2  # the sum foretold it


@given(st.lists(st.floats(1e-7, 1e-3), min_size=20, max_size=60))
def test_no_smaller_set_along_the_ranking_would_do(noises):
    evaluate = Additive(noises)
    found = smallest_set(lambda: ranking_of(noises), evaluate, 0.01)
    if found and evaluate(found).sqnr_db >= ENOUGH_DB:
        fewer = [cost.layer for cost in ranking_of(noises)][: len(found) - 1]
        assert evaluate(fewer).sqnr_db < ENOUGH_DB


def test_decibels_alone_are_worth_fifteen_percent_of_the_work():
    noises = [1e-2] * 10
    found = smallest_set(lambda: ranking_of(noises), Additive(noises), 0.01)
    assert len(found) <= 1


def test_a_layer_too_large_to_spare_is_passed_over():
    noises, shares = [4e-3, 3e-3, 3e-3, 1e-4], [0.6, 0.05, 0.05, 0.3]
    found = smallest_set(lambda: ranking_of(noises, shares), Additive(noises), 0.01)
    assert found == ("layer1", "layer2")


def test_lost_pictures_are_worth_half_of_the_work():
    noises = [1e-3] * 20
    evaluate = Additive(noises, lost=lambda noise: 20 if noise > 11.5e-3 else 0)
    found = smallest_set(lambda: ranking_of(noises), evaluate, 0.01)
    assert 9 <= len(found) <= 10
    assert evaluate(found).lost == 0


def test_where_nothing_helps_the_best_is_returned():
    noises = [1e-2] * 4
    found = smallest_set(lambda: ranking_of(noises), Additive(noises, lost=lambda noise: 50), 0.01)
    assert len(found) == 2  # half of the work


@pytest.mark.parametrize(
    ("lost", "won", "limit", "expected"),
    [(0, 0, 0.0, True), (2, 0, 0.01, True), (10, 0, 0.01, False), (10, 10, 0.01, True), (12, 0, 0.2, True)],
)
def test_a_handful_of_lost_pictures_is_no_evidence(lost, won, limit, expected):
    assert Score(20, 0.1, lost, won, 64).may_drop(limit) is expected


def test_multiply_adds_by_hand():
    graph = Graph(graphs.cnn(["depthwise", "transpose"], head="mlp"))
    counts = {n.name: multiply_adds(graph, n) for n in graph.nodes if n.op_type in ("Conv", "ConvTranspose", "Gemm")}
    assert counts["stem1"] == 16 * 16 * 8 * 3 * 9
    assert counts["depthwise1"] == 16 * 16 * 8 * 9
    assert counts["up1"] == 16 * 16 * 8 * 8 * 4  # every input pixel meets the whole kernel
    assert counts["dense1"] == 8 * 12


def test_the_ranking_finds_the_layer_that_hurts():
    model = graphs.cnn(["conv", "conv", "conv"])
    graph = Graph(model)
    placement = place(graph, TENSORRT)
    pictures = graphs.pictures(16)
    weight = graph.constant("conv2_weight")
    values, scale = weight_parameters(weight, 0)
    damaged = {"conv2": QuantizedLayer((values // 32 * 32).clip(-127, 127).astype(np.int8), scale)}
    ranges = dict.fromkeys(placement.tensors(graph), (-6.0, 6.0))
    judge = Judge(model, graphs.spec(), lambda: [pictures], threads=1)
    told = []
    ranking = rank_layers(
        graph,
        placement,
        lambda p: quantize_graph(graph, p, ranges, TENSORRT, damaged),
        judge,
        lambda *step: told.append(step),
    )
    assert ranking[0].layer == "conv2"
    assert {cost.layer for cost in ranking} == {"stem1", "conv1", "conv2", "conv3"}
    assert 0.999 < sum(cost.share for cost in ranking) < 1  # the last layer is in float anyway
    assert told[-1] == (4, 4)


@pytest.mark.parametrize(("shape", "positions"), [((7, 7), 49), ((5,), 5), ((), 1)])
def test_a_matrix_multiplies_once_for_each_row_of_its_input(shape, positions):
    b = graphs.Builder()
    y = b.node("MatMul", "x", b.constant("w", np.zeros((3, 10), np.float32)), name="layer")
    value = helper.make_tensor_value_info
    model = b.model([value("x", 1, ["n", *shape, 3])], [value(y, 1, ["n", *shape, 10])])
    graph = Graph(model)
    assert multiply_adds(graph, graph.node("layer")) == 30 * positions
