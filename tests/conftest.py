"""Fixtures that several folders of tests share; the functions behind them are in tiny.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings
from tiny import write_tiny_bundle

from edgetl import host

# Small networks gain nothing from threads, and threads that wait for each other lose much on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["fixtures_trained"]

# The same examples each time, and no limit that a busy machine would break.
settings.register_profile("edgetl", deadline=None, derandomize=True)
settings.load_profile("edgetl")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps each file's tests, and what they share, in one process; the scripts, which share nothing, come first."""
    items.sort(key=lambda item: "script" not in getattr(item, "fixturenames", ()))
    for item in items:
        group = item.nodeid if "script" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fp32 and this processor's INT8 form, which is recommended. Not to be changed."""
    root = tmp_path_factory.mktemp("bundle") / "tiny.edgetl"
    native = f"int8-{host.arch()}"
    return write_tiny_bundle(root, ("fp32", native), recommended=True, reason="0.5 x FP32's latency")
