# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of helpers, which the plugin knows without importing what has them."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import types

import pytest

from drgn_tools import _plugin


@pytest.mark.parametrize("module", _plugin._HELPERS)
def test_names_are_the_modules(module: str) -> None:
    helpers = importlib.import_module(f"drgn_tools.{module}")
    assert _plugin._HELPERS[module].split() == sorted(helpers.__all__)
    for name in helpers.__all__:
        function, helper = getattr(helpers, name), _plugin._Helper(module, name)
        assert isinstance(function, types.FunctionType)
        assert inspect.signature(helper) == inspect.signature(function)
        told = pydoc.plain(pydoc.render_doc(helper))
        assert name in told
        for line in (inspect.getdoc(function) or "no text").splitlines():
            assert line in told
