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
