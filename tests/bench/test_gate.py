"""The gate's verdicts: on comparisons worked by hand, on results of other machines and other pictures, as files."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.bench import Entry, Limits, Result, Verdict, answer_checks, baseline_checks, fp32_checks, recall_checks
from edgetl.bench.against import duel_of
from edgetl.bench.compare import Comparison
from edgetl.bench.conditions import Conditions
from edgetl.bench.gate import drop_check, latency_check
from edgetl.bench.verdict import Check, junit, markdown
from edgetl.errors import InputError

HOST = {"machine": "m1", "cpu": "a cpu", "board": None, "cores": 2, "gpus": [], "versions": {"onnxruntime": "1.31"}}
DATA = [{"bundle": "b", "source": "photos", "digest": "d1", "split": "val"}]


def entry(variant="fp32", ms=10.0, top1=0.9, recall=0.95, support=20, bundle="b.edgetl", spread=0.001):
    samples = [[round(ms * 1e6 * (1 + spread * k))] * 30 for k in (-1, 0, 1)]
    rows = [{"label": "bolt", "recall": recall, "support": support}]
    return Entry(
        bundle, "digest", variant, "cpu", samples, 1, {"top1": top1}, report={"classification": {"per_class": rows}}
    )


def result(*entries, machine="m1", digest="d1", invalid=()):
    data = [{**DATA[0], "digest": digest}]
    return Result({**HOST, "machine": machine}, {"threads": 1, "data": data}, entries, Conditions(invalid), "now")


@pytest.mark.parametrize(
    ("ratio", "low", "high", "floor", "ok"),
    [
        (1.00, 0.99, 1.01, 0.01, True),
        (1.02, 1.01, 1.03, 0.01, True),  # slower, and less than the limit
        (1.05, 1.04, 1.06, 0.01, False),
        (1.05, 0.99, 1.11, 0.01, None),  # above the limit, and it may be noise
        (1.05, 1.04, 1.06, 0.08, None),  # noise reaches farther than the rise
        (1.20, 1.15, 1.25, 0.08, False),  # noise does not reach this
        (1.00, 0.95, 1.05, 0.01, None),  # a rise of 3 % could not be seen: its own interval is too wide
        (1.00, 0.99, 1.01, 0.05, None),  # nor here: the same model differs by as much from itself
        (0.50, 0.49, 0.51, 0.01, True),
    ],
)
def test_a_rise_of_latency_fails_only_where_it_is_no_noise(ratio, low, high, floor, ok):
    check = latency_check("m", Comparison(ratio, low, high, 0.01, 6), floor, 0.03)
    assert check.ok is ok
    assert ("give more --processes" in check.text) == (ok is None)


def test_a_duel_takes_the_noise_from_the_copies():
    base = [[1_000_000 + k % 5 for k in range(60)] for _ in range(6)]
    copy = [[round(n * (1 + 0.02 * (-1) ** i)) for n in side] for i, side in enumerate(base)]
    duel = duel_of("m", [[round(n * 1.05) for n in side] for side in base], base, copy)
    assert 1.04 < duel.found.ratio < 1.06
    assert duel.noise.ratio == pytest.approx(1.0, abs=0.001)
    assert 0.02 < duel.floor < 0.06  # the copies differ by 2 % either way, over six processes
    quiet = duel_of("m", base, base, base)
    assert quiet.floor == 0.0


def test_drops_and_recalls():
    assert drop_check("m", 0.90, 0.904, 0.005).ok
    assert not drop_check("m", 0.90, 0.906, 0.005).ok
    assert drop_check("m", 0.895, 0.9, 0.005).ok  # rounding decides nothing
    assert drop_check("m", 0.95, 0.9, 0.0).text == "top-1 90.00% -> 95.00% (+5.00 points)"
    assert drop_check("m", 0.9, 0.9, 0.0).text == "top-1 90.00% -> 90.00% (+0.00 points)"
    assert drop_check("m", None, 0.9, 0.1).ok is None
    [good] = recall_checks(entry(recall=0.95), {"bolt": 0.95})
    [bad] = recall_checks(entry(recall=0.949), {"bolt": 0.95})
    [unseen] = recall_checks(entry(support=0), {"bolt": 0.95})
    assert (good.ok, bad.ok, unseen.ok) == (True, False, None)
    with pytest.raises(InputError, match=r"--min-recall nut: b.edgetl has no such class; it knows bolt"):
        recall_checks(entry(), {"nut": 0.5})


def test_variants_are_judged_against_their_own_fp32():
    checks = fp32_checks(result(entry(top1=0.9), entry("int8-x86", top1=0.88)), 0.01)
    assert [(c.model, c.ok) for c in checks] == [("b.edgetl int8-x86", False)]
    with pytest.raises(InputError, match="add --variant fp32"):
        fp32_checks(result(entry("int8-x86")), 0.01)


def test_a_baseline_of_the_same_machine_is_compared():
    limits = Limits(max_regression=0.05, max_drop=0.01)
    then = result(entry(ms=10))
    [latency, drop] = baseline_checks(result(entry(ms=10.1)), then, limits, "r.json")
    assert (latency.ok, drop.ok) == (True, True)
    [latency, _] = baseline_checks(result(entry(ms=11)), then, limits, "r.json")
    assert latency.ok is False
    [latency, _] = baseline_checks(result(entry(ms=10, spread=0.1)), then, limits, "r.json")
    assert latency.ok is None  # its processes differ by more than the limit
    [*_, conditions] = baseline_checks(result(entry(), invalid=("it throttled",)), then, limits, "r.json")
    assert (conditions.what, conditions.ok, conditions.text) == ("conditions", False, "it throttled")


def test_results_that_say_nothing_about_each_other_are_refused():
    limits = Limits(max_regression=0.05, max_drop=0.01)
    with pytest.raises(InputError, match=r"another machine.*give --against"):
        baseline_checks(result(entry()), result(entry(), machine="m2"), limits, "r.json")
    with pytest.raises(InputError, match="other pictures"):
        baseline_checks(result(entry()), result(entry(), digest="d2"), limits, "r.json")
    with pytest.raises(InputError, match="no model in common"):
        baseline_checks(result(entry()), result(entry("int8-x86")), limits, "r.json")
    threads = dataclasses.replace(result(entry()), settings={"threads": 4, "data": DATA})
    with pytest.raises(InputError, match=r"was measured with --threads 4, now it is 1"):
        baseline_checks(result(entry()), threads, limits, "r.json")
    older = dataclasses.replace(result(entry()), host={**HOST, "versions": {"onnxruntime": "1.20"}})
    with pytest.raises(InputError, match=r"was measured with onnxruntime 1\.20"):
        baseline_checks(result(entry()), older, limits, "r.json")
    with pytest.raises(InputError, match="no /etc/machine-id"):
        baseline_checks(result(entry(), machine=None), result(entry(), machine=None), limits, "r.json")
    only_drop = dataclasses.replace(limits, max_regression=None)  # accuracy is the same on every machine
    assert baseline_checks(result(entry()), result(entry(), machine="m2"), only_drop, "r.json")[0].ok


def test_a_model_that_no_longer_runs_does_not_pass():
    """Its entry is there without an engine, or it is not there at all."""
    then = result(entry("fp32"), entry("int8-x86"))
    unrun = dataclasses.replace(entry("int8-x86"), engine="", samples_ns=[], notes=("latency: the plan failed",))
    checks = baseline_checks(result(entry("fp32"), unrun), then, Limits(max_regression=0.05), "r.json")
    assert [c.ok for c in checks] == [True, None]
    assert checks[1].text == "was timed then, and not now: latency: the plan failed"
    chosen = dataclasses.replace(result(entry("fp32")), settings={"threads": 1, "data": DATA, "variants": ["fp32"]})
    assert len(baseline_checks(chosen, then, Limits(max_regression=0.05), "r.json")) == 1  # as --variant asked
    [_, gone] = baseline_checks(result(entry("fp32")), then, Limits(max_regression=0.05), "r.json")
    assert (gone.what, gone.ok) == ("presence", None)


def test_a_gate_that_looks_at_nothing_does_not_pass():
    assert not Verdict([]).ok
    assert Verdict([]).text == "there was nothing to check"
    with pytest.raises(InputError, match="there is nothing else here: export --int8"):
        fp32_checks(result(entry("fp32")), 0.01)


def test_answers_of_nan_fail_whatever_the_limits_are():
    broken = dataclasses.replace(entry(), report={"non_finite": 3})
    [check] = answer_checks([entry(), broken])
    assert (check.ok, check.text) == (False, "3 answers are NaN or infinity")


def test_a_single_bundle_may_have_another_name():
    checks = baseline_checks(
        result(entry(bundle="new.edgetl")), result(entry(bundle="old.edgetl")), Limits(max_regression=0.05), "r"
    )
    assert [c.model for c in checks] == ["new.edgetl fp32"]


@pytest.mark.parametrize("wrong", [{"max_regression": 0.0}, {"max_drop": -0.1}, {"min_recall": {"a": 1.5}}])
def test_limits_that_make_no_sense(wrong):
    with pytest.raises(InputError, match="--m"):
        Limits(**wrong)


CHECKS = [
    Check("b.edgetl fp32", "latency", 0.1, 0.03, False, "10% slower"),
    Check("b.edgetl fp32", "recall of a|b\n<x>", 1.0, 0.9, True, "100.0% of 3 pictures found"),
    Check("b.edgetl int8", "latency", 0.1, 0.03, None, "noise"),
]


def test_a_verdict_is_one_line_and_comes_back_from_json():
    verdict = Verdict(CHECKS, "old.edgetl", ["noise reaches 1%"])
    assert not verdict.ok
    assert verdict.text == "2 of 3 checks do not hold: b.edgetl fp32: 10% slower"
    assert Verdict.from_dict(verdict.to_dict()) == verdict
    assert Verdict(CHECKS[1:2]).text == "1 checks hold"


def test_junit_counts_what_is_undecided_as_a_failure():
    root = ET.fromstring(junit([(result(entry()), Verdict(CHECKS))]))
    [suite] = root
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "3", "2")
    assert [case.find("failure") is not None for case in suite] == [True, False, True]
    assert suite[1].get("name") == "recall of a|b\n<x>"
    assert suite[2].find("failure").get("type") == "undecided"


@given(st.text(min_size=1))
def test_any_label_makes_a_valid_file(label):
    check = Check("b", f"recall of {label}", 1.0, 0.9, False, f"{label} is not found")
    judged = [(result(entry()), Verdict([check]))]
    [case] = ET.fromstring(junit(judged)).iter("testcase")
    assert case.find("failure") is not None
    rows = [line for line in markdown(judged).splitlines() if line.startswith("| b ")]
    assert len(rows) == 1
    assert len([i for i, c in enumerate(rows[0]) if c == "|" and rows[0][i - 1] != "\\"]) == 6


def test_the_markdown_page_says_all():
    page = markdown([(result(entry(), invalid=("it throttled",)), Verdict(CHECKS, "HEAD~1:b.edgetl", ["noise"]))])
    assert page.startswith("## edgetl bench: failed\n")
    for part in ("Against HEAD~1:b.edgetl.", "❌ **fails**", "✅ holds", "⚠️ **undecided**"):
        assert part in page
    for part in ("- noise", "- it throttled", "a cpu, 2 cores"):
        assert part in page
