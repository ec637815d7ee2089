"""The main job on real pictures and real weights, as far as a suite has time for it.

The full figures, three seeds of the default strategy among them, come from benchmarks/transfer.py.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgetl.bench import Side, measure_latency, paired_ratio
from edgetl.bundle import open_bundle
from edgetl.dataset import open_dataset
from edgetl.export import ExportConfig, export_original, export_run
from edgetl.finetune import FinetuneConfig, finetune
from edgetl.quantize import QuantizeConfig

pytestmark = [
    pytest.mark.kit,
    pytest.mark.slow,
    pytest.mark.skipif("EDGETL_KIT" not in os.environ, reason="EDGETL_KIT names no folder of weights and pictures"),
]


@pytest.fixture(scope="module")
def kit():
    return Path(os.environ["EDGETL_KIT"])


@pytest.fixture(scope="module")
def grocery(kit):
    return open_dataset(kit / "grocery20")


@pytest.fixture(scope="module")
def probe_run(kit, grocery, tmp_path_factory):
    from fixtures_trained import Recorder

    weights = str(kit / "weights" / "mobilenet_v2_tv.safetensors")
    config = FinetuneConfig(backbone="mobilenet_v2", weights=weights, strategy="probe")
    return finetune(grocery, config, tmp_path_factory.mktemp("kit") / "probe", reporter=Recorder()).root


@pytest.fixture(scope="module")
def probe_bundle(probe_run, grocery, tmp_path_factory):
    from fixtures_trained import Recorder

    config = ExportConfig(int8=True, max_drop=0.02, quantize=QuantizeConfig(calib_images=80))
    return export_run(probe_run, grocery, config, tmp_path_factory.mktemp("kit") / "p.edgetl", reporter=Recorder())


def test_the_pictures_are_sound(grocery):
    assert len(grocery.items) == 880
    assert grocery.audit.bad == ()


def test_every_tensor_of_the_weights_is_matched_by_name(probe_run):
    config = (probe_run / "config.yaml").read_text()
    assert "mobilenet_v2_tv.safetensors" in config
    assert (probe_run / "source.safetensors").exists()


def test_a_linear_probe_reaches_83_percent(probe_run):
    val = json.loads((probe_run / "metrics.json").read_text())["val"]
    assert val["top1"] >= 0.83
    assert val["pictures"] == 320


def test_int8_for_tensorrt_loses_at_most_one_point(probe_bundle):
    assert probe_bundle.variant("int8-tensorrt").metrics["top1_drop"] <= 0.01
    assert probe_bundle.variant("int8-tensorrt").metrics["sqnr_db"] > 20


def test_fp16_decides_as_fp32_does(probe_bundle):
    assert probe_bundle.variant("fp16").metrics["flip_rate"] <= 0.01
    assert probe_bundle.variant("fp16").metrics["sqnr_db"] > 45


@pytest.mark.skipif("x86" not in __import__("edgetl.host").host.arch(), reason="made for x86")
def test_int8_for_x86_takes_at_most_065_of_fp32(probe_bundle):
    sides = [Side(probe_bundle.root, "fp32"), Side(probe_bundle.root, "int8-x86")]
    timed = measure_latency(sides, processes=3, seconds=2.0).samples_ns
    assert paired_ratio(timed[1], timed[0]) <= 0.65
    assert probe_bundle.variant("int8-x86").recommended


def test_the_original_keeps_its_thousand_classes(probe_run, grocery, kit, tmp_path):
    from fixtures_trained import Recorder

    bundle = export_original(probe_run, grocery, ExportConfig(), tmp_path / "o.edgetl", reporter=Recorder())
    assert len(bundle.spec.labels) == 1000
    assert bundle.manifest["proof"]["probe_top1"] > 0.8
    import edgetl

    rows = [line.split(",") for line in (kit / "imagenet_sample" / "labels.csv").read_text().splitlines()[1:101]]
    with edgetl.load(open_bundle(bundle.root)) as classify:
        hits = [classify(kit / "imagenet_sample" / "images" / r[0]).scores.argmax() == int(r[1]) for r in rows]
    assert np.mean(hits) > 0.7  # 82.0 % on all 500 by torch
