"""Pictures are decoded once and read again in bounded memory."""

import numpy as np
import pytest

from edgetl.errors import QuantizationError
from edgetl.quantize.pictures import Pictures


def batches(count=20, size=6, shape=(5, 4, 3)):
    values = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return values, [values[i : i + size] for i in range(0, count, size)]


def test_what_was_passed_on_can_be_read_again_and_again():
    values, source = batches()
    with Pictures(iter(source)) as pictures:
        assert np.array_equal(np.concatenate(list(pictures.first())), values)
        assert (pictures.seen, pictures.count) == (20, 20)
        for _ in range(2):
            read = list(pictures.batches())
            assert [len(batch) for batch in read] == [8, 8, 4]
            assert np.array_equal(np.concatenate(read), values)
        assert np.array_equal(np.concatenate(list(pictures.batches(3, 7))), values[3:7])
        assert list(pictures.batches(20)) == []


def test_two_readers_do_not_disturb_each_other():
    values, source = batches()
    with Pictures(source) as pictures:
        list(pictures.first())
        one, other = pictures.batches(), pictures.batches(8)
        assert np.array_equal(next(one), values[:8])
        assert np.array_equal(next(other), values[8:16])
        assert np.array_equal(next(one), values[8:16])


def test_the_file_has_a_limit_and_the_first_reading_has_none():
    values, source = batches()
    with Pictures(source, limit=9 * 60) as pictures:
        assert len(np.concatenate(list(pictures.first()))) == 20
        assert (pictures.seen, pictures.count) == (20, 9)
        assert np.array_equal(np.concatenate(list(pictures.batches())), values[:9])
    _, source = batches()
    with Pictures(source, limit=0) as pictures:
        assert sum(len(batch) for batch in pictures.first()) == 20
        assert pictures.count == 0


def test_pictures_of_two_shapes_are_refused():
    _, source = batches()
    _, other = batches(shape=(4, 4, 3))
    with (
        pytest.raises(QuantizationError, match=r"differ in shape: \(4, 4, 3\) after \(5, 4, 3\)"),
        Pictures([*source, *other]) as pictures,
    ):
        list(pictures.first())


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, source = batches()
    with Pictures(source) as pictures:
        list(pictures.first())
        assert list(tmp_path.iterdir()) == []  # unnamed even while it is open


def test_a_full_disk_is_said_in_a_line(monkeypatch, tmp_path):
    import resource
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, source = batches()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Pictures(source) as pictures:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
        try:
            with pytest.raises(QuantizationError, match=r"no room for 2048 MiB of calibration pictures .*set TMPDIR"):
                list(pictures.first())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
