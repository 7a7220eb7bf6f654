"""Lists as they are typed on a command line."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """Words that are separated by commas or blanks."""
    return text.replace(",", " ").split()


def integers(text: str, option: str) -> list[int]:
    """Positive integers; raises ValueError that names the option."""
    try:
        numbers = [int(word) for word in words(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{option} must be positive integers such as 64,128; got {text!r}")
    return numbers
