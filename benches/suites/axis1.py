"""Images: classes on axis 1 of logits of shape (N, C, H, W), for each pixel a class or shares of all."""

from __future__ import annotations

import math

from xent_rs.cli.benchmark.measuring import Results, Settings, Skips

from . import kinds

_ELEMENTS, _QUICK_ELEMENTS = 1 << 24, 1 << 18
_CLASSES = (2, 3, 5, 21, 150, 1000, 10_000)

# Images at once; they are square.
_IMAGES = 8

# To compile each of the shapes and kinds would take most of the time.
_LEFT_OUT = ("PyTorch, compiled",)


def run(settings: Settings) -> tuple[Results, Skips]:
    """Compare at each number of classes."""
    elements = _QUICK_ELEMENTS if settings.quick else _ELEMENTS
    shapes = []
    for classes in _CLASSES:
        side = max(1, round(math.sqrt(elements / (_IMAGES * classes))))
        shapes.append((_IMAGES * side**2, classes, (_IMAGES, side, side)))
    return kinds.run("axis1", shapes, (kinds.CLASSES, kinds.SOFT, kinds.KL), settings, _LEFT_OUT)
