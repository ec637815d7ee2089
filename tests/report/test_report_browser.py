"""The pages as readers open them: a phone and a desktop, light and dark, in a real browser."""

from __future__ import annotations

import itertools

import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from report_inputs import CONFIG, decisions, entry, history, layers, manifest, metrics, result, rich_result
from test_report_bench import HOSTILE, SCRIPTS
from tiny import encoded, noise

from edgetl.bench.conditions import Conditions
from edgetl.report import bench_report, export_report, finetune_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

_LONG = ("a_very_long_name_of_a_class_without_any_space_in_it" * 3, "nut", "screw")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def _pages(picture):
    shown = {"int8-x86": decisions(("bolt", "nut", "screw"), noise=2.0, paths=[picture, "/gone/away.png"])[0]}
    bad = Conditions(("the machine throttled: let it cool" * 3,), ("the governor is powersave",))
    report = {"fidelity": shown["int8-x86"]}
    crowd = [entry(f"/data/bundle-number-{i}.edgetl", v, report=report) for i in range(4) for v in ("fp32", "int8-x86")]
    return {
        "bench": lambda: bench_report([rich_result(paths=[picture, "/gone/away.png"]), rich_result(_LONG)]),
        "bench-hostile": lambda: bench_report([rich_result(HOSTILE, bundle=f"/{HOSTILE[0]}.edgetl", paths=[picture])]),
        "bench-scripts": lambda: bench_report([rich_result(SCRIPTS), result([]), result(crowd, conditions=bad)]),
        "bench-classes": lambda: bench_report([rich_result([f"class {i}" for i in range(40)], pictures=400)]),
        "finetune": lambda: finetune_report(metrics(_LONG), history(), CONFIG),
        "export": lambda: export_report(manifest(), shown, layers()),
        "export-hostile": lambda: export_report(manifest(HOSTILE), shown, layers()),
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    picture = folder / "p.png"
    picture.write_bytes(encoded(Image.fromarray(noise(120, 160))))
    made = {}
    for name, page in _pages(picture).items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(page(), encoding="utf-8")
    return made


_VIEWS = [
    (name, width, scheme)
    for name, width, scheme in itertools.product(_pages(None), (360, 1200), ("light", "dark"))
    if "-" not in name or (width, scheme) == (360, "light") or (name, width, scheme) == ("bench-scripts", 1200, "dark")
]


@pytest.mark.parametrize(("name", "width", "scheme"), _VIEWS)
def test_a_page_opens_without_fault(browser, pages, name, width, scheme):
    seen = browser.look(pages[name], width, scheme)
    found = seen.found

    assert seen.errors == []
    assert seen.requests == []
    assert found["title"].endswith("· edgetl")
    assert found["scheme"] == scheme
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 23, 26)"}[scheme]
    assert found["overflow"] <= 0, found["wide"]
    assert found["wide"] == []
    assert found["broken"] == []
    assert found["clipped"] == []
    assert found["ids"] == 0, "an id stands twice"
    assert found["scripts"] == found["handlers"] == 0
    assert all(chart > 250 for chart in found["charts"])
    if name in ("bench", "export", "bench-hostile", "export-hostile"):
        assert found["images"] > 0


def test_the_probe_sees_faults(browser, tmp_path):
    """A test that cannot fail is none: everything it looks for, once."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<title>x</title><div style='width: 3000px'>wide</div><img src='gone.png' alt='gone'><p id=a></p><p id=a></p>"
        "<script>console.error('no')</script>"
    )
    seen = browser.look(page, 360, "light")
    assert seen.requests == [(tmp_path / "gone.png").as_uri()]
    assert any("no" in error for error in seen.errors)
    assert seen.found["overflow"] > 0
    assert seen.found["wide"]
    assert seen.found["broken"] == ["gone"]
    assert seen.found["ids"] == seen.found["scripts"] == 1
