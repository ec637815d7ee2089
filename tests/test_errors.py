"""edgetl.errors: the tree in the docstring is the tree in the code."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from edgetl import errors
from edgetl.errors import EdgetlError, InternalError, MissingExtraError, require

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, Exception) and cls.__module__ == errors.__name__
}


def test_docstring_tree_lists_every_class():
    drawn = re.findall(r"^ {4}(?:[├└]── )?(\w+) {2,}", errors.__doc__, flags=re.MULTILINE)

    assert sorted(drawn) == sorted(CLASSES)


def test_docstring_tree_tells_who_descends_from_whom():
    children = re.findall(r"[├└]── (\w+)", errors.__doc__)

    assert sorted(children) == sorted(n for n, c in CLASSES.items() if c.__bases__ == (EdgetlError,))
    assert not issubclass(InternalError, EdgetlError)


def test_docstring_tree_tells_the_exit_codes():
    told = {name: int(code) for name, code in re.findall(r"(\w+) +exit (\d+)", errors.__doc__)}

    assert told == {"EdgetlError": 2, "GateError": 1, "Interrupted": 130}
    assert {n: c.exit_code for n, c in CLASSES.items() if issubclass(c, EdgetlError)} == {
        name: told.get(name, 2) for name in CLASSES if name != "InternalError"
    }


def test_every_class_is_public_and_described():
    assert sorted(CLASSES) == sorted(set(errors.__all__) - {"missing_extra", "require"})
    assert all(cls.__doc__ and cls.__doc__.strip().endswith(".") for cls in CLASSES.values() if cls is not EdgetlError)


def test_require_imports():
    assert require("json", "train") is sys.modules["json"]
    assert require("xml.dom", "train").__name__ == "xml.dom"


@pytest.mark.parametrize("module", ["package_that_is_absent", "package_that_is_absent.part"])
def test_require_names_package_and_extra(module):
    with pytest.raises(MissingExtraError) as caught:
        require(module, "cpu")
    assert str(caught.value) == (
        "package_that_is_absent is not installed, and this step needs it: pip install 'edgetl[cpu]'"
    )


def test_require_keeps_the_error_of_a_package_that_is_there_and_broken(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import its_own_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError, match="its_own_dependency"):
        require("half_installed", "train")
