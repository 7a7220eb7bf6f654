"""What `--device` and `--dtype` mean where they are not given."""

from __future__ import annotations


def chosen(device: str | None) -> str:
    """The device as it was given, or the GPU where there is one. Raises ValueError for a device
    that does not exist."""
    import torch

    from archsearch import hardware

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    hardware.describe(device)
    return device


def usual_dtype(device: str) -> str:
    """What models are served in there."""
    return "bfloat16" if device.startswith("cuda") else "float32"
