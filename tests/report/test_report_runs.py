"""The pages of a fine-tuning run and of an export."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image
from report_inputs import CONFIG, decisions, history, layers, manifest, metrics
from test_report_bench import HOSTILE, SCRIPTS, check_is_safe, words
from tiny import encoded, noise

from edgetl.report import export_report, finetune_report


def test_a_run_tells_how_it_learned_and_what_it_can():
    run = metrics(bad=[("/data/parts/x.jpg", "cannot be decoded")])
    html = finetune_report(run, history(), CONFIG)
    text = words(html)

    assert f"top-1 {run['val']['top1'] * 100:.1f} % of 60 validation pictures" in text
    for heading in ("Result", "Loss", "Top-1", "Learning rate", "Recall by class", "Confusion matrix", "Settings"):
        assert heading in text
    for row in run["val"]["per_class"]:
        assert f"{row['recall'] * 100:.1f} % of {row['support']}" in text
    assert "/data/parts/x.jpg: cannot be decoded" in text
    assert "1 picture left out" in text
    assert " probe " in text
    assert " tune " in text
    assert "9 epochs" in text


@pytest.mark.parametrize(
    "rows",
    [[], history(()), history([("tune", 1)]), history([("probe", 300)]), [{"stage": "tune", "epoch": "1", "lr": ""}]],
    ids=["none", "final alone", "one epoch", "many epochs", "nothing measured"],
)
def test_runs_with_little_history(rows):
    check_is_safe(finetune_report(metrics(), rows, CONFIG))


@pytest.mark.parametrize("labels", [("only",), tuple(f"class {i}" for i in range(1000))], ids=["one", "thousand"])
def test_runs_with_few_and_many_classes(labels):
    html = finetune_report(metrics(labels), history(), {})
    check_is_safe(html)
    assert len(html) < 2_000_000


def test_an_export_tells_what_each_variant_is_worth_and_why(tmp_path):
    picture = tmp_path / "flipped.png"
    picture.write_bytes(encoded(Image.fromarray(noise(50, 50))))
    seen = {"int8-x86": decisions(("bolt", "nut", "screw"), noise=2.0, paths=[picture])[0]}
    html = export_report(manifest(), seen, layers())
    text = words(html)

    for said in (
        "Recommended here: fp32.", "+2.00 pt", "24.2 dB", "0.50×", "loses 2.00 points of top-1", "not measured",
        "95 % interval", "The limit was 1.00 pt", "Cost of single layers", "/layer0/Conv",
        "20.0 dB · 10.0% of the work", "for its cost (tensorrt)", "5 layers, 1 in float", "flipped.png",
        "Classes that changed",
    ):  # fmt: skip
        assert said in text, said
    assert "data:image/jpeg" in html
    assert text.index("/layer0/Conv") < text.index("/layer4/Conv"), "the most expensive first"


def test_an_export_without_labels_layers_or_flips():
    bare = manifest(fidelity={})
    bare["proof"] = {"val_pictures": 3, "fp32": None, "reason": "the data's classes are not among its labels"}
    check_is_safe(export_report(bare, {}))
    blind = {"fp16": {**decisions(("a", "b"))[0], "top1_drop": None, "ece": None, "per_class": [], "worst_flips": []}}
    check_is_safe(export_report(manifest(fidelity=blind), blind, []))


def test_layers_that_nobody_tried_alone_are_listed_with_the_reason():
    untried = [{**layer, "alone_db": None, "multiply_adds": None} for layer in layers()]
    text = words(export_report(manifest(), {}, untried))
    assert "No layer was tried alone" in text
    assert "Cost of single layers" not in text


@pytest.mark.parametrize("names", [HOSTILE, SCRIPTS], ids=["hostile", "scripts"])
def test_no_name_breaks_the_pages(names):
    run = metrics(names, bad=[(name, name) for name in names])
    run["dataset"]["source"] = names[0]
    check_is_safe(
        finetune_report(run, history([(names[0], 2), (names[1], 1)]), {"backbone": names[2], names[0]: names[1]})
    )
    made = manifest(names)
    made["spec"]["backbone"] = names[0]
    made["variants"][1] |= {"name": names[1], "reason": names[2]}
    kinds = [{**layer, "name": name, "in_float": {name: name}} for layer, name in zip(layers(7), names, strict=True)]
    check_is_safe(export_report(made, {names[0]: decisions(names, noise=2.0)[0]}, kinds))


@pytest.mark.slow
def test_pages_of_a_real_run_and_bundle(transfer_run, bundle_path):
    from edgetl.bundle import open_bundle
    from edgetl.cli.layers import layer_costs

    run = json.loads((transfer_run / "metrics.json").read_text())
    with (transfer_run / "history.csv").open() as file:
        check_is_safe(finetune_report(run, list(csv.DictReader(file)), {}))
    bundle = open_bundle(bundle_path)
    html = export_report(bundle.manifest, bundle.manifest["proof"]["fidelity"], layer_costs(bundle))
    check_is_safe(html)
    for variant in bundle.variants:
        assert variant.name in html
