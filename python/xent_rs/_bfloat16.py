"""The dtype bfloat16, which NumPy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np


def bfloat16() -> np.dtype[Any]:
    """Return the dtype of ``ml_dtypes``.

    Raises
    ------
    ImportError
        If it is not installed; the text says how to.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f'bfloat16 needs ml_dtypes ({error}): pip install "xent_rs[bfloat16]"') from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Tell whether numbers are bfloat16, as the compiled module does.

    That is the dtype of `ml_dtypes` or, without it, two bytes in a field of that name in native order.
    """
    if dtype.itemsize != 2:
        return False
    if dtype.names is None or dtype.fields is None:
        return dtype.type.__name__ == "bfloat16"
    if dtype.names != ("bfloat16",):
        return False
    field = dtype.fields["bfloat16"][0]
    return field.kind == "u" and field.byteorder == "="
