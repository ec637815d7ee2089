"""`__all__` equals what can be imported, in every module of the package."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import edgetl

ROOT = Path(edgetl.__file__).parent
MODULES = sorted({"edgetl", *(m.name for m in pkgutil.walk_packages([str(ROOT)], "edgetl."))})


def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def test_the_walk_finds_the_package():
    files = [p.relative_to(ROOT.parent) for p in ROOT.rglob("*.py")]

    assert sorted(".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in files) == MODULES
    assert {"edgetl.spec", "edgetl.runtime.classifier", "edgetl.cli.main"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_all_can_be_imported(name):
    module = importlib.import_module(name)

    assert isinstance(module.__all__, list)
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert not missing
    private = [public for public in module.__all__ if public.startswith("_") and public != "__version__"]
    assert not private


@pytest.mark.parametrize("name", MODULES)
def test_modules_take_from_each_other_what_is_public(name):
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            source = importlib.import_module(node.module)
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}" in MODULES
                assert is_module or alias.name in source.__all__, f"{name} takes {node.module}.{alias.name}"


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_and_classes_are_listed(name):
    """What a module defines without an underscore is either listed, or no function and no class."""
    listed = importlib.import_module(name).__all__
    defined = {
        node.name
        for node in _tree(name).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(listed), f"not in __all__: {sorted(defined - set(listed))}"


def test_package_offers_its_names_lazily():
    assert edgetl.__all__ == ["Batching", "Classifier", "EdgetlError", "Frames", "Prediction", "__version__", "load"]
    assert dir(edgetl) == edgetl.__all__
    assert edgetl.load is importlib.import_module("edgetl.runtime").load
    assert edgetl.Classifier is sys.modules["edgetl.runtime"].Classifier
    with pytest.raises(AttributeError, match="module 'edgetl' has no attribute 'laod'"):
        _ = edgetl.laod
