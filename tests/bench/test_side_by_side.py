"""Separate runs beside each other."""

import dataclasses
import json

import pytest
from bench.test_gate import entry, result

from edgetl.bench.side_by_side import side_by_side
from edgetl.cli.main import run
from edgetl.errors import InputError


def test_runs_of_one_machine_are_compared_and_their_p_corrected():
    first = result(entry("fp32", ms=10), entry("int8-x86", ms=5))
    pairs = side_by_side([first, result(entry("fp32", ms=12), entry("int8-x86", ms=5)), result(entry("fp32", ms=10))])
    assert [(p.number, p.now.variant) for p in pairs] == [(1, "fp32"), (1, "int8-x86"), (2, "fp32")]
    assert [round(p.comparison.ratio, 2) for p in pairs] == [1.2, 1.0, 1.0]
    assert pairs[1].comparison.p == 1.0
    assert "no significant difference" in pairs[2].text


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (result(entry(), machine="m2"), "another machine: latencies are not compared"),
        (result(entry(), machine=None), "a machine without /etc/machine-id: latencies are not compared"),
        (
            dataclasses.replace(result(entry()), settings={"threads": 4, "data": []}),
            "measured with other --threads: latencies are not compared",
        ),
        (result(entry(), invalid=("it throttled",)), "a run is invalid: it throttled"),
    ],
)
def test_what_cannot_be_compared_is_shown_with_the_reason(other, why):
    [pair] = side_by_side([result(entry()), other])
    assert (pair.comparison, pair.text) == (None, why)


def test_results_without_a_common_model():
    with pytest.raises(InputError, match="no model in common"):
        side_by_side([result(entry("fp32")), result(entry("int8-x86"))])
    with pytest.raises(InputError, match="give two or more"):
        side_by_side([result(entry())])


def test_the_command(tmp_path, capsys):
    for name, ms in (("a", 10), ("b", 13)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(entry(ms=ms), entry("fp16", top1=0.8)).to_dict()))
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert run(["compare", *files, "--json", str(tmp_path / "o.json")]) == 0
    out = capsys.readouterr().out
    assert "13.00" in out
    assert "30.0% slower" in out
    found = json.loads((tmp_path / "o.json").read_text())
    assert found[0]["comparison"]["ratio"] == pytest.approx(1.3)
    assert found[0]["top1_gain"] == 0.0
