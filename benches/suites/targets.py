"""Soft targets, another model's logits and a softcap against PyTorch and JAX, the classes last."""

from __future__ import annotations

from xent_rs.cli.benchmark.measuring import Results, Settings, Skips

from . import kinds

_ELEMENTS, _QUICK_ELEMENTS = 1 << 24, 1 << 18
_CLASSES = (10, 1000, 32_000)


def run(settings: Settings) -> tuple[Results, Skips]:
    """Compare at each number of classes."""
    elements = _QUICK_ELEMENTS if settings.quick else _ELEMENTS
    shapes = [(elements // classes, classes, None) for classes in _CLASSES]
    return kinds.run("targets", shapes, (kinds.SOFT, kinds.KL, kinds.SOFTCAP), settings)
