"""Extremes and histograms against whole tensors in numpy."""

import sys

import numpy as np
import onnx_graphs as graphs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import QuantizationError
from edgetl.quantize.observe import BINS, Observation, observe

RELUS = ("Relu", "Sigmoid")
quick = settings(deadline=None, max_examples=60)


def moving(model, *, rank=None):
    """Names of float tensors behind the normalization, with the op that makes them."""
    found = {n.output[0]: n.op_type for n in model.graph.node if n.op_type not in ("Cast", "Transpose")}
    flat = ("Gemm", "Flatten")
    return {k: op for k, op in found.items() if rank is None or (op in flat or "dense" in k) == (rank == 2)}


def batches_of(pictures, size):
    return [pictures[i : i + size] for i in range(0, len(pictures), size)]


@pytest.mark.parametrize("size", [(16, 16), (45, 31)])
def test_extremes_are_exact(size):
    model = graphs.residual_cnn(size=size)
    pictures = graphs.pictures(10, size)
    names = moving(model)
    truth = graphs.run(graphs.with_outputs(model, names), pictures)
    seen = observe(model, names, batches_of(pictures, 4), threads=1)
    assert seen.keys() == names.keys()
    for name, op in names.items():
        low = min(0.0, truth[name].min()) if op in RELUS else truth[name].min()
        assert seen[name].low == pytest.approx(low, rel=1e-5, abs=1e-6), name
        assert seen[name].high == pytest.approx(truth[name].max(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("size", [(16, 16), (45, 31)])
def test_counts_are_those_of_the_grid(size):
    """Maps are sampled with an odd stride that leaves about 14 points on a side, over all channels."""
    model = graphs.residual_cnn(size=size)
    pictures = graphs.pictures(6, size)
    names = moving(model)
    truth = graphs.run(graphs.with_outputs(model, names), pictures)
    for name, observation in observe(model, names, [pictures], threads=1).items():
        values = truth[name]
        if values.ndim == 4:
            down, right = (side // 14 | 1 for side in values.shape[2:])
            values = values[:, :, ::down, ::right]
        place = np.abs(values).ravel().astype(np.float64) / observation.limit * BINS
        expected = np.bincount(np.minimum(place.astype(int), BINS - 1), minlength=BINS)
        assert observation.counts.sum() == values.size, name
        moved = np.abs(np.cumsum(observation.counts - expected)).max()
        assert moved <= 2 + values.size // 500, name  # values on an edge may fall to either side


def test_two_dimensional_tensors_are_observed_whole():
    model = graphs.residual_cnn()
    pictures = graphs.pictures(7)
    names = moving(model, rank=2)
    assert names.keys() >= {"embedding", "dense1_out", "logits"}
    truth = graphs.run(model, pictures)
    seen = observe(model, names, [pictures], threads=1)
    assert seen["logits"].counts.sum() == 7 * graphs.CLASSES
    assert (seen["logits"].low, seen["logits"].high) == pytest.approx((truth["logits"].min(), truth["logits"].max()))
    assert seen["embedding"].counts.sum() == 7 * 8


def test_progress_counts_pictures_and_a_generator_is_enough():
    model = graphs.cnn(["conv"])
    told = []
    pictures = graphs.pictures(10)
    observe(model, ["relu1_out"], (b for b in batches_of(pictures, 4)), threads=1, on_progress=told.append)
    assert told == [4, 8, 10]


def test_the_model_itself_is_left_alone():
    model = graphs.cnn(["conv"])
    before = model.SerializeToString()
    observe(model, ["relu1_out", "logits"], [graphs.pictures(2)], threads=1)
    assert model.SerializeToString() == before


def test_no_pictures_are_refused():
    with pytest.raises(QuantizationError, match=r"^no calibration pictures: INT8 needs some; give --data$"):
        observe(graphs.cnn(["conv"]), ["relu1_out"], [], threads=1)


def damaged(value, size, at):
    """A graph whose normalized picture holds one bad value at a point of channel 1."""
    b = graphs.Builder()
    plane = np.zeros((1, 3, *size), np.float32)
    plane[0, 1, at[0], at[1]] = value
    x = b.node("Add", b.normalize("pictures", size), b.constant("damage", plane))
    y = b.relu(x)
    b.node("Flatten", b.node("GlobalAveragePool", y), output="logits")
    return b.model(
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", *size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )


@pytest.mark.parametrize("name", ["add1_out", "relu1_out"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("size", "at"), [((1, 1), (0, 0)), ((3, 3), (1, 2)), ((56, 56), (5, 10))])
def test_nan_and_infinity_are_refused_by_name(name, value, size, at):
    with pytest.raises(QuantizationError, match=f'^activation "{name}" holds NaN or infinity .*: train it again') as e:
        observe(damaged(value, size, at), [name], [graphs.pictures(2, size)], threads=1)
    assert "\n" not in str(e.value)


def test_nan_between_the_points_of_the_grid_is_found_by_what_follows_from_it():
    with pytest.raises(QuantizationError, match=r'^activation "logits" holds NaN'):
        observe(damaged(np.nan, (56, 56), (5, 9)), ["relu1_out"], [graphs.pictures(2, (56, 56))], threads=1)


def test_nan_in_a_two_dimensional_tensor_is_refused():
    model = graphs.residual_cnn()
    for tensor in model.graph.initializer:
        if tensor.name == "dense1_bias":
            values = numpy_helper.to_array(tensor).copy()
            values[3] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(QuantizationError, match=r'^activation "dense1_out" holds NaN or infinity'):
        observe(model, ["dense1_out"], [graphs.pictures(2)], threads=1)


def test_memory_does_not_depend_on_the_number_of_pictures():
    def size(count):
        seen = observe(graphs.cnn(["conv"]), ["relu1_out"], [graphs.pictures(count)], threads=1)["relu1_out"]
        return sum(sys.getsizeof(v) for v in vars(seen).values()), seen.counts.nbytes, seen.counts.sum()

    few, many = size(2), size(40)
    assert few[:2] == many[:2]
    assert few[1] == BINS * 8
    assert many[2] == 20 * few[2]


magnitudes = st.floats(0, 2.0**100, width=32)
batch_lists = st.lists(st.lists(magnitudes, min_size=1, max_size=8), min_size=1, max_size=8)


def added(batches):
    observation = Observation()
    for batch in batches:
        values = np.array(batch, np.float32)
        observation.add(values, float(values.min()), float(values.max()))
    return observation


@quick
@given(batch_lists, st.randoms(use_true_random=False))
def test_no_sample_is_lost_in_any_order_of_batches(batches, random):
    random.shuffle(batches)
    observation = added(batches)
    values = np.concatenate(batches)
    assert observation.counts.sum() == len(values)
    assert (observation.low, observation.high) == (np.float32(values.min()), np.float32(values.max()))
    assert observation.high <= observation.limit < 2 * observation.high or observation.limit == observation.high == 0


@quick
@given(batch_lists)
def test_a_histogram_that_grew_puts_each_value_in_its_bin(batches):
    """Merging pairs of bins keeps the place of a value to within rounding at the edge."""
    observation = added(batches)
    if observation.limit == 0:
        assert observation.counts[0] == observation.counts.sum()
        return
    values = np.concatenate([np.array(b, np.float32) for b in batches]).astype(np.float64)
    place = values / observation.limit * BINS
    inside = np.abs(place - np.round(place)) > 1e-3  # a value on an edge may fall to either side
    expected = np.bincount(np.minimum(place[inside].astype(int), BINS - 1), minlength=BINS)
    assert (observation.counts >= expected).all()


@quick
@given(st.integers(0, 5), st.integers(1, 5))
def test_zeros_count_wherever_they_come(before, after):
    batches = [[0.0]] * before + [[1.0]] + [[0.0]] * after
    observation = added(batches)
    assert observation.counts[0] == before + after
    assert observation.counts[-1] == 1


@pytest.mark.parametrize("peak", [1e-45, 1e-38, 1e-10, 3e38])
def test_the_faintest_and_the_loudest_tensor(peak):
    observation = added([[0.0, peak], [peak / 2]])
    assert observation.counts.sum() == 3
    assert observation.counts[0] == (2 if peak == 1e-45 else 1)  # half of the smallest number is 0
    assert observation.counts[-1] == 1


def test_a_faint_beginning_does_not_spoil_the_histogram():
    observation = added([[1e-40], [1.0], [0.5]])
    assert 1.0 <= observation.limit < 2.0
    assert observation.counts[0] == 1
    assert observation.counts.sum() == 3
