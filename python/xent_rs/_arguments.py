"""What arguments may be, where Python looks at them."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._cross_entropy import cross_entropy
from ._environment import in_default_environment


def integer(value: object, what: str) -> int:
    """Return an integer that is no truth value; `what` begins the error: ``axis is``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} {value!r}; expected an integer") from None


@in_default_environment
def class_weight(weight: ArrayLike | None) -> NDArray[np.float64] | None:
    """Return a copy of class weights for later calls; what is wrong with them is said now."""
    if weight is None:
        return None
    weight = _xent_rs.as_array(weight, "weight")
    if weight.ndim != 1 or len(weight) == 0:
        raise ValueError(f"weight has shape {weight.shape}; expected (C,), one number a class")
    # The weights are checked where they are used: by a batch without rows.
    cross_entropy(np.zeros((0, len(weight)), np.float32), np.zeros(0, np.int64), weight=weight)
    return np.array(weight, np.float64)
