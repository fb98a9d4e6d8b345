"""The losses for Keras 3: Keras's own classes, of logits, on the kernels of this package.

They have the arguments and the meaning of Keras's, on its TensorFlow, JAX, PyTorch and NumPy backends: what a
row's loss is multiplied by, which rows a mask leaves out and how losses are reduced is Keras's own code.

Losses
------
SparseCategoricalCrossentropy   -- for keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CategoricalCrossentropy         -- for keras.losses.CategoricalCrossentropy(from_logits=True)
BinaryCrossentropy              -- for keras.losses.BinaryCrossentropy(from_logits=True)
CategoricalFocalCrossentropy    -- for keras.losses.CategoricalFocalCrossentropy(from_logits=True)
BinaryFocalCrossentropy         -- for keras.losses.BinaryFocalCrossentropy(from_logits=True)
"""

from __future__ import annotations

try:
    import keras
except ImportError as error:
    raise ImportError(
        f"xent_rs.keras needs Keras and one of its backends ({error}): pip install xent_rs[keras]"
    ) from None

_OLDEST = (3, 10)
if tuple(int(number) for number in keras.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"xent_rs.keras needs Keras {_OLDEST[0]}.{_OLDEST[1]} or newer, and this is {keras.__version__}: "
        "pip install --upgrade xent_rs[keras]"
    )

from ._losses import (  # noqa: E402
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    SparseCategoricalCrossentropy,
)

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "SparseCategoricalCrossentropy",
]
