from __future__ import annotations

import sys

import pytest

from pxfast._optional import require
from pxfast.errors import MissingPackageError, PxfastError


def test_an_installed_package_is_imported():
    assert require("json.decoder", "this test", "nothing") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_a_missing_package_is_named_with_what_needs_it_and_how_to_get_it(module):
    with pytest.raises(MissingPackageError) as caught:
        require(module, "the data set digits", "pxfast[demo]")
    assert str(caught.value) == (
        f"the data set digits needs {module}, which is not installed: pip install 'pxfast[demo]'"
    )
    assert isinstance(caught.value, PxfastError)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_package", "which needs no_such_package"),
        ("raise RuntimeError('no operator')", "whose import fails: RuntimeError: no operator"),
    ],
)
def test_a_package_whose_import_fails_says_why(tmp_path, monkeypatch, source, message):
    (tmp_path / "failing_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=f"needs failing_package, {message}"):
        require("failing_package", "this test", "failing")
