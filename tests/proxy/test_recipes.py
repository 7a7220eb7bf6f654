"""Named recipes are found by name; a near miss is named."""

from __future__ import annotations

import pytest

from archsearch.proxy import recipes


def test_names_resolve() -> None:
    for name, recipe in recipes.RECIPES.items():
        assert recipes.get(name) is recipe


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'cpus'; did you mean 'cpu'\?"):
        recipes.get("cpus")
