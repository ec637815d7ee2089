"""Channels get other scales, the function stays."""

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgetl.quantize.equalize import channel_groups, equalized, factors_of
from edgetl.quantize.graph import Graph

LINEAR = ("conv", "plain", "residual", "shortcut", "pool")


def random_factors(graph, groups, seed):
    rng = np.random.default_rng(seed)
    channels = [graph.shape(group.tensors[0])[1] for group in groups]
    return {i: np.exp(rng.uniform(0, 2, count)) for i, count in enumerate(channels)}


@given(plan=st.lists(st.sampled_from(LINEAR), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_the_answers_stay_whatever_the_factors_are(plan, seed):
    model = graphs.cnn(plan, channels=6, size=(12, 12), seed=seed)
    graph = Graph(model)
    groups = channel_groups(graph)
    changed = equalized(graph, random_factors(graph, groups, seed), groups)
    pictures = graphs.pictures(3, (12, 12), seed)
    before, after = graphs.run(model, pictures), graphs.run(changed, pictures)
    for name in before:
        assert graphs.sqnr(before[name], after[name]) > 80, name
    if groups:
        assert changed.SerializeToString() != model.SerializeToString()


def test_what_an_addition_ties_together_is_one_group():
    graph = Graph(graphs.cnn(["conv", "residual", "conv"]))
    groups = [set(group.tensors) for group in channel_groups(graph)]
    together = next(group for group in groups if "add1_out" in group)
    assert {"relu2_out", "conv3_out", "relu4_out"} <= together  # the skip, the branch, and what follows


def test_a_group_that_reaches_an_output_or_an_unknown_op_is_left_alone():
    graph = Graph(graphs.cnn(["se", "conv"]))
    touched = {name for group in channel_groups(graph) for name in group.tensors}
    assert "relu1_out" not in touched  # taken by the product of squeeze-excite
    assert not touched & {"embedding", "logits", "relu3_out"}


def test_a_weight_that_two_layers_share_cannot_take_two_factors():
    model = graphs.cnn(["conv", "conv", "conv"])
    graphs.nodes_of(model, "Conv")[2].input[1] = "conv1_weight"
    graph = Graph(model)
    touched = {name for group in channel_groups(graph) for name in (*group.producers, *group.consumers)}
    assert not touched & {"conv1", "conv2"}


def test_behind_a_clip_channels_only_become_louder_and_only_where_it_begins_at_zero():
    graph = Graph(graphs.cnn(["clip", "conv"]))
    group = next(g for g in channel_groups(graph) if "clip1_out" in g.tensors)
    assert group.only_louder
    model = graphs.cnn(["clip", "conv"])
    low = next(t for t in model.graph.initializer if t.name == "clip1_min")
    low.CopyFrom(numpy_helper.from_array(np.float32(-1), low.name))
    assert not [g for g in channel_groups(Graph(model)) if "clip1_out" in g.tensors]


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=20),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_factors_make_quiet_channels_louder_and_never_louder_than_the_loudest(peaks, strength):
    peaks = np.array(peaks)
    factors = factors_of([peaks], strength)
    assert (factors >= 1).all()
    assert (factors * peaks <= peaks.max() * (1 + 1e-9) + 1e-12).all()
    assert factors[peaks.argmax()] == 1


def test_full_strength_makes_all_channels_alike():
    assert factors_of([np.array([1.0, 4.0, 0.5])], 1.0) == pytest.approx([4.0, 1.0, 8.0])
    assert factors_of([np.array([1.0, 4.0]), np.array([8.0, 2.0])], 1.0) == pytest.approx([1.0, 1.0])
    assert factors_of([np.array([0.0, 4.0])], 1.0) == pytest.approx([1.0, 1.0])  # a dead channel


def test_depthwise_and_grouped_kernels_take_their_own_channels_back():
    model = graphs.cnn(["conv"], channels=8)
    node = graphs.nodes_of(model, "Conv")[1]
    next(a for a in node.attribute if a.name == "group").i = 4
    weight = next(t for t in model.graph.initializer if t.name == "conv1_weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :2], weight.name))
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    groups = channel_groups(graph)
    assert len(groups) == 1
    changed = equalized(graph, random_factors(graph, groups, 5), groups)
    pictures = graphs.pictures(3)
    assert graphs.sqnr(graphs.run(model, pictures)["logits"], graphs.run(changed, pictures)["logits"]) > 80
