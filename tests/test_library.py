import importlib
import sys

import pytest

from harness.errors import UserError
from harness.library import Library


@pytest.mark.parametrize("module", ["none_such", "none_such.part", "json.none_such"])
def test_a_missing_package_is_named_with_its_remedy(module):
    library = Library(module, "its-name", "extra")
    match = r"logging=it: its-name is not installed .*none_such.*pip install -c constraints.txt -e '\.\[extra\]'"
    with pytest.raises(UserError, match=match):
        library.find("logging=it")
    with pytest.raises(UserError, match=match), library.needed("logging=it"):
        importlib.import_module(module)


def test_it_is_found_without_being_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    Library("this", "this", "this").find("logging=this")
    assert "this" not in sys.modules
