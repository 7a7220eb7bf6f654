"""From what a user types to an `ArchSpec`: a preset's name, the short form, or a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archsearch import operators
from archsearch.names import suggestion
from archsearch.space import presets
from archsearch.space.notation import read_pattern
from archsearch.space.spec import ArchSpec
from archsearch.space.spec import LayerSpec


def parse(notation: str, **fields: Any) -> ArchSpec:
    """The architecture that the short form describes; `fields` are those of `ArchSpec`.

    Raises ValueError for a bad pattern (pointing at the place), and where the hidden size
    is given neither as `@2048` nor as a field, or twice and differently.
    """
    pattern = read_pattern(notation)
    given = fields.pop("hidden_size", None)
    if pattern.hidden_size is None and given is None:
        raise ValueError(f"the pattern needs a hidden size: '{notation.strip()} @2048'")
    if None not in (pattern.hidden_size, given) and pattern.hidden_size != given:
        raise ValueError(f"hidden_size is {given}, but the pattern says @{pattern.hidden_size}")
    layers = tuple(LayerSpec(operator=name) for name in pattern.operators)
    return ArchSpec.create(hidden_size=pattern.hidden_size or given, layers=layers, **fields)


def load(text: str) -> ArchSpec:
    """A preset's name, a JSON file's path or the short form; raises ValueError with what
    exists, and OSError for a file that cannot be read."""
    text = text.strip()
    if text in presets.names():
        return presets.get(text)
    if text.endswith(".json") or Path(text).is_file():
        return _load_file(Path(text))
    codes = {key for op in operators.OPERATORS for key in (op.name, op.code)}
    if any(sign in text for sign in " \t\n()@") or text in codes:
        return parse(text)
    hint = suggestion(text, presets.names())
    raise ValueError(
        f"{text!r} is no architecture; {hint}give a preset ({', '.join(presets.names())}), "
        "a pattern such as '(a f)x4 @256', or the path of a JSON file"
    )


def _load_file(path: Path) -> ArchSpec:
    try:
        return ArchSpec.from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
