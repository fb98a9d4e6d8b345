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


def has_slices(value: object) -> bool:
    """Tell whether an object has what a `SlicedArray` of `xent_rs.io` has."""
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "__getitem__")


def is_read_in_slices(value: object) -> bool:
    """Tell whether an object is an array that is not in memory: of files, Zarr, h5py, Dask, xarray.

    What has its numbers in memory offers them by NumPy's or by DLPack's protocol. Series of pandas, which may
    not, are indexed by labels.
    """
    in_memory = any(hasattr(value, name) for name in ("__array_interface__", "__dlpack__", "iloc"))
    return not in_memory and has_slices(value) and isinstance(getattr(value, "dtype", None), np.dtype)


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
