"""What is nearer to FP32: noise tells, until it drowns the logits."""

from edgetl.quantize.judge import Score


def score(sqnr_db, flip_rate):
    return Score(sqnr_db, flip_rate, 0, 0, 50)


def test_less_noise_is_nearer_whatever_a_few_pictures_say():
    assert score(20.0, 0.04).beats(score(19.0, 0.02), 0.5)
    assert not score(20.0, 0.0).beats(score(19.8, 0.02), 0.5)


def test_logits_of_nearly_zero_are_not_nearer_than_loud_ones_that_keep_the_decision():
    crushed, loud = score(-0.02, 0.64), score(-2.0, 0.14)
    assert loud.beats(crushed, 0.5)
    assert not crushed.beats(loud, 0.5)
    assert max([crushed, loud], key=lambda s: s.nearness) is loud


def test_meaningful_noise_beats_any_that_is_not_and_nothing_beats_itself():
    assert score(12.0, 0.2).beats(score(8.0, 0.0), 0.5)
    for each in (score(30.0, 0.0), score(1.0, 0.3)):
        assert not each.beats(each, 0.0)
