"""The page of a benchmark says all that was measured, and nothing that was not."""

from __future__ import annotations

import base64
import io
import re
import time
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_inputs import COLD, data_of, decisions, entry, result, rich_result, samples
from tiny import encoded, noise

from edgetl.bench.conditions import Conditions
from edgetl.report import bench_report
from edgetl.report.thumbnails import Thumbnails

HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "\"><svg onload='x'>", "<b>&amp;</b>", "$\\frac{x}$ $", "]]><!--",
    "{{ 7 * 7 }}{% raw %}", "a\x00b\x1b[31m\n\r\tc",
)  # fmt: skip
SCRIPTS = ("漢字かな交じり", "עברית ערבית", "🔩 bolt", "\udcff broken name", "ﷺ", "a" * 300, "")


class Outline(HTMLParser):
    """Every element with its attributes, and every text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def check_is_safe(html):
    """No script, no handler, no way out to a network, whatever the input was."""
    outline = Outline(html)
    names = {tag for tag, _ in outline.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "b", "base"}
    for tag, attributes in outline.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "http-equiv" in html
    assert "default-src 'none'" in html
    return outline


def words(html):
    """The page's text, without the charts' words being glued together."""
    return " ".join(text for text in Outline(html.partition("</style>")[2]).texts if text)


def test_the_page_tells_what_was_measured():
    measured = rich_result()
    text = words(bench_report([measured]))

    entries = measured["results"]
    for found in entries[:2]:
        assert f"{found['accuracy']['top1'] * 100:.1f} %" in text
        assert f"{found['latency_ms']['p50']:.3f}"[:4] in text
    assert entries[1]["comparison"]["text"] in text
    assert "50.0% faster" in text
    assert "latency: FP16 is for GPUs (fp16)" in text
    for heading in (
        "Test Processor", "Overview", "What differs", "Accuracy against latency", "Latency",
        "Latency at 30 pictures a second", "From file to label", "Throughput", "Cold start", "Peak memory", "Energy",
        "Decisions", "Confusion matrix", "Classes that changed", "Pictures whose decision changed", "Not measured",
        "How it was measured", "Machine", "Settings", "Versions",
    ):  # fmt: skip
        assert heading in text, heading
    assert "8.00 mJ, idle 2.50 W" in text
    assert "GPU memory" not in text
    assert "The slowest 0.5 % of each are not drawn" in text
    assert "Left out, without latency or accuracy here: fp16" in text
    assert "2026-01-02 03:04:05 UTC" in text


def test_what_spoils_a_measurement_stands_above_the_figures():
    conditions = Conditions(("the machine throttled: let it cool",), ("the governor is powersave: sudo cpupower",))
    text = words(bench_report([result([entry()], conditions=conditions)]))

    invalid, unstable = text.index("the machine throttled: let it cool"), text.index("sudo cpupower")
    assert invalid < unstable < text.index("Overview")
    assert "Invalid: do not believe these absolute figures" in text


@pytest.mark.parametrize(
    ("states", "banner"), [(("holds", "holds"), "Gate passed"), (("holds", "fails", "undecided"), "Gate failed")]
)
def test_a_gates_verdict(states, banner):
    checks = [
        {"model": "parts fp32", "what": "latency", "measured": 0.1, "limit": 0.05, "ok": state == "holds",
         "text": f"is {state}", "state": state}
        for state in states
    ]  # fmt: skip
    ok = all(check["ok"] for check in checks)
    gated = result([entry()]) | {"gate": {"ok": ok, "against": "base.json", "checks": checks, "notes": ["noise 2 %"]}}
    text = words(bench_report([gated]))

    assert banner in text
    assert f"{len(states)} checks" in text
    assert ", against base.json noise 2 %" in text
    for state in states:
        assert f"is {state}" in text


def test_devices_stand_apart_and_are_never_merged():
    one = result([entry(ms=1.0)], host={"cpu": "First CPU"})
    other = result([entry(ms=4.0)], device="ssh://board", host={"board": "Jetson Orin Nano"})
    html = bench_report([one, other])
    sections = html.split("<h2>")[1:]

    assert [section.partition("<")[0] for section in sections] == ["First CPU", "ssh://board: Jetson Orin Nano"]
    p50 = [f"{found['results'][0]['latency_ms']['p50']:.2f} ms" for found in (one, other)]
    assert p50[1] not in sections[0]
    assert p50[0] not in sections[1]
    assert "First CPU" not in sections[1]
    assert "on 2 devices" in html


def test_accuracies_on_different_pictures_share_no_chart():
    report = {"fidelity": (pair := decisions(("a", "b")))[0], "classification": pair[1]}
    data = data_of("x.edgetl", source="/data/old") + data_of("y.edgetl", source="/data/new", digest="0" * 64)
    text = words(
        bench_report([result([entry("x.edgetl", report=report), entry("y.edgetl", report=report)], data=data)])
    )

    assert "Accuracy against latency on old, val" in text
    assert "Accuracy against latency on new, val" in text
    assert "Bundles judged on other pictures have a chart of their own" in text


@pytest.mark.parametrize(
    "results",
    [
        [],
        [result([])],
        [result([entry(ms=None)])],
        [result([entry()])],
        [result([entry(samples_ns=[[1_000_000]])])],
        [result([entry(samples_ns=[[1000] * 50])])],
        [result([entry(), entry()])],
        [result([entry(engine="cpu"), entry(engine="cuda")])],
        [result([entry(cold_start={**COLD, "import_ms": None, "peak_bytes": None, "gpu_bytes": 5})])],
        [result([entry(batches_ns={4: [1_000]})])],
        [rich_result(("only",))],
        [rich_result(bundle="/")],
    ],
    ids=lambda results: str(len(results)),
)
def test_pages_of_little(results):
    html = bench_report(results)

    check_is_safe(html)
    assert not re.search(r"\b(nan|inf|None|NaN)\b", words(html))


def test_a_variant_that_decides_as_fp32_does_is_only_named():
    same = decisions(("a", "b"), noise=0.0)
    report = {"fidelity": same[0], "classification": same[1]}
    rows = [entry(variant=name, report=report, ms=None) for name in ("fp32", "fp16", "int8-arm")]
    html = bench_report([result([*rows, entry()], data=data_of("parts.edgetl"))])

    assert "Decide every picture as FP32 does: fp16, int8-arm." in html
    assert html.count("Confusion matrix</h3>") == 1


@pytest.mark.parametrize("names", [HOSTILE, SCRIPTS], ids=["hostile", "scripts"])
def test_no_name_breaks_the_page(names):
    measured = rich_result(names, bundle=f"/data/{names[0]}.edgetl")
    measured["results"][0]["notes"] = list(names)
    measured["results"][1]["comparison"]["text"] = names[0]
    measured["results"][1]["bundle"] = names[1]
    measured["host"]["cpu"] = names[2]
    measured["device"] = names[1]
    measured["conditions"]["invalid"] = list(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = bench_report([measured])

    check_is_safe(html)
    assert "\x00" not in html
    assert "\x1b" not in html
    assert html.encode()
    assert "49" not in re.findall(r"{{.*?}}", html)
    for name in names[:3]:
        shown = name.encode("utf-8", "backslashreplace").decode()
        assert shown in words(html), "it is shown as it is"


def test_pictures_that_are_gone_or_broken_are_named(tmp_path):
    good, broken, wide = tmp_path / "good.png", tmp_path / "broken.jpg", tmp_path / "wide.png"
    good.write_bytes(encoded(Image.fromarray(noise(300, 200))))
    broken.write_bytes(b"\xff\xd8\xff no picture")
    Image.new("RGBA", (900, 2), (255, 0, 0, 20)).save(wide)
    paths = [good, broken, wide, tmp_path / "gone.png", tmp_path]
    html = bench_report([rich_result(paths=paths)])

    outline = check_is_safe(html)
    shown = {attributes["alt"] for tag, attributes in outline.elements if tag == "img"}
    assert shown <= {"good.png", "wide.png"}
    assert shown
    text = words(html)
    assert "no longer there gone.png"[:15] in text
    assert "cannot be read" in text
    assert "gone.png" in text


def test_thumbnails_share_the_room_of_a_page(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(encoded(Image.fromarray(noise(400, 300))))
    pictures = Thumbnails()
    room = pictures.room
    uri, why = pictures.get(str(picture))

    assert uri.startswith("data:image/jpeg;base64,")
    assert not why
    assert len(uri) < 20_000
    assert pictures.room == room - len(uri)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as small:
        assert small.size == (72, 96)
    full = Thumbnails(room=len(uri) + 10)
    assert full.get(str(picture)) == (uri, "")
    assert full.get(str(picture)) == ("", "not shown: this page has enough pictures")
    assert Thumbnails().get("") == ("", "its path was not kept")


def test_a_page_of_much_is_small_and_soon_made():
    labels = [f"class {i} of a thousand" for i in range(1000)]
    pair = decisions(labels, 3000, noise=2.0)
    report = {"fidelity": pair[0], "classification": pair[1]}
    names = ("fp32", "fp16", "int8-tensorrt", "int8-x86", "int8-arm")
    rows = [
        entry(variant=name, report=report, samples_ns=np.tile(samples(500, 1, 1 + i), (100, 1)).tolist())
        for i, name in enumerate(names)
    ]
    start = time.process_time()
    html = bench_report([result(rows, data=data_of("parts.edgetl"))])

    assert len(html.encode()) < 2_000_000
    assert time.process_time() - start < 20
    text = words(html)
    assert "Most confused" in text
    assert "Confusion matrix" not in text
