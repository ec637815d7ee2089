"""The gate on live runs of small networks, and bundles as a git revision has them."""

import json
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from tiny import TINY_BIAS, TINY_WEIGHT, tiny_graph, tiny_spec, tiny_variant

from edgetl.bench import BenchConfig, Contender, Limits, bench_against
from edgetl.bench.revision import bundle_at
from edgetl.bundle import open_bundle, write_manifest
from edgetl.cli.main import run
from edgetl.errors import InputError


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def bundle_with(root, bias):
    root.mkdir(parents=True, exist_ok=True)
    write_manifest(
        root, tiny_spec(), [tiny_variant(root, "fp32", tiny_graph(TINY_WEIGHT, bias))], provenance={}, proof={}
    )
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two revisions of a bundle: the first one answers otherwise."""
    top = tmp_path_factory.mktemp("repository")
    git(top, "init", "-q")
    bundle_with(top / "models" / "parts.edgetl", TINY_BIAS + np.array([0, 50, 0], np.float32))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "one")
    bundle_with(top / "models" / "parts.edgetl", TINY_BIAS)
    git(top, "add", "-A")
    git(top, "commit", "-qm", "two")
    return top


@pytest.fixture
def pictures(tmp_path):
    """Plain colours, which the present bundle tells and the former one takes for green."""
    from PIL import Image

    for label, colour in {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}.items():
        for shade in range(3):
            path = tmp_path / "photos" / "val" / label / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), tuple(min(255, c + 10 * shade) for c in colour)).save(path)
            train = tmp_path / "photos" / "train" / label / f"{shade}.png"
            train.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), tuple(max(0, c - 10 * (shade + 1)) for c in colour)).save(train)
    return tmp_path / "photos"


def test_a_revision_gives_the_bundle_as_it_was(repository, monkeypatch):
    monkeypatch.chdir(repository / "models")
    digests = []
    for text in ("HEAD~1:models/parts.edgetl", "HEAD:./parts.edgetl", "HEAD:models/parts.edgetl"):
        with bundle_at(text) as (name, path):
            bundle = open_bundle(path)
            bundle.verify()
            digests.append(bundle.digest)
            assert name == text
        assert not path.exists()
    assert digests[0] != digests[1] == digests[2] == open_bundle("parts.edgetl").digest
    with bundle_at("parts.edgetl") as (_, path):
        assert path.name == "parts.edgetl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense:models/parts.edgetl", 'git knows no revision "nonsense"; a shallow clone needs fetch-depth: 0'),
        ("--output=x:models", 'git knows no revision "--output=x"'),
        ("HEAD:models/other.edgetl", "HEAD has no models/other.edgetl"),
    ],
)
def test_what_git_does_not_have(repository, monkeypatch, text, message):
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match=message) as caught, bundle_at(text):
        pass
    assert "\n" not in str(caught.value)


def pointer(bundle):
    (bundle / "model.fp32.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")


def link(bundle):
    (bundle / "manifest.json").symlink_to("/etc/passwd")


@pytest.mark.parametrize(("put", "message"), [(pointer, "holds pointers of Git LFS"), (link, "is a link or a device")])
def test_what_is_no_bundle_in_a_revision_is_refused(tmp_path, monkeypatch, put, message):
    git(tmp_path, "init", "-q")
    (tmp_path / "b.edgetl").mkdir()
    put(tmp_path / "b.edgetl")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "no bundle")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message), bundle_at("HEAD:b.edgetl"):
        pass


@pytest.mark.slow
def test_the_command_as_a_gate(repository, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    common = ["--data", str(pictures), "--processes", "1", "--seconds", "0.1", "--markdown", str(summary)]
    now, then = "models/parts.edgetl", "HEAD~1:models/parts.edgetl"
    code = run(["bench", now, "--against", then, "--max-drop", "0pt", "--min-recall", "red=100%", *common])
    out = capsys.readouterr()
    assert code == 0, out.err
    assert "33.33% -> 100.00% (+66.67 points)" in out.out
    assert "the same model against itself" in out.err
    git(repository, "checkout", "-q", "HEAD~1")
    try:
        junit = tmp_path / "deep" / "j.xml"
        options = ["--max-drop", "0.5pt", "--junit", str(junit), "--json", str(tmp_path / "r.json"), *common]
        code = run(["bench", now, "--against", "master:models/parts.edgetl", *options])
        if code == 2:  # git's name of the first branch is the user's choice
            capsys.readouterr()
            code = run(["bench", now, "--against", "main:models/parts.edgetl", *options])
    finally:
        git(repository, "checkout", "-q", "-")
    err = capsys.readouterr().err
    assert code == 1, err
    assert err.strip().splitlines()[-1].startswith("edgetl: 1 of 1 checks do not hold: models/parts.edgetl fp32: top-1")
    assert len(list(ET.parse(junit).getroot().iter("failure"))) == 1
    gate = json.loads((tmp_path / "r.json").read_text())["gate"]
    assert gate["ok"] is False
    page = summary.read_text()
    assert page.startswith("before\n## edgetl bench: passed")
    assert "## edgetl bench: failed" in page


@pytest.mark.slow
def test_a_slower_model_is_caught_and_its_twin_is_not(tmp_path):
    """A network four times as large, far above any noise; the fine figures are of benchmarks/gate.py."""
    import onnx_graphs

    def written(root, channels):
        root.mkdir()
        graph = onnx_graphs.cnn(("conv", "plain", "conv"), channels=channels, size=(32, 32))
        variant = tiny_variant(root, "fp32", graph.SerializeToString())
        write_manifest(root, onnx_graphs.spec((32, 32)), [variant], provenance={}, proof={})
        return Contender(root.name, root, None)

    small, large = written(tmp_path / "small.edgetl", 16), written(tmp_path / "large.edgetl", 64)
    config, limits = BenchConfig(processes=2, seconds=0.2), Limits(max_regression=0.5)
    result, verdict = bench_against(large, small, config, limits, on_progress=lambda *_: None)
    assert not verdict.ok
    assert result.entries[0].latency_ratio > 2
    assert [entry.bundle for entry in result.entries] == ["large.edgetl", "small.edgetl"]
    _, verdict = bench_against(small, small, config, limits, on_progress=lambda *_: None)
    assert verdict.ok, verdict.text
