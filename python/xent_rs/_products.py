"""The matrix products of NumPy, and the conversions of numbers around them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._environment import in_default_environment

Matrix = NDArray[Any]

# How much of a sum of products is computed at once: NumPy cannot add a product to what is there, so that it
# is made beside and then added. 8 MiB stay in the cache.
_SUMMED_BYTES = 8 << 20

# How many numbers of 16 bits are widened at once: they, and what becomes of them, are to stay in the cache.
_WIDENED = 1 << 16


class Products:
    """Products of matrices of float32 or float64, and conversions to and from these."""

    @in_default_environment
    def multiply(self, left: Matrix, right: Matrix, out: Matrix) -> None:
        """Write ``left @ right``."""
        with np.errstate(all="ignore"):  # what is not finite says so in the result
            np.matmul(left, right, out=out)

    @in_default_environment
    def add_product(self, left: Matrix, right: Matrix, out: Matrix) -> None:
        """Add ``left @ right`` to what `out` holds."""
        step = max(1, _SUMMED_BYTES // max(1, out.shape[1] * out.itemsize))
        beside = np.empty((min(step, len(out)), out.shape[1]), out.dtype)
        with np.errstate(all="ignore"):
            for start in range(0, len(out), step):
                some = out[start : start + step]
                product = beside[: len(some)]
                np.matmul(left[start : start + step], right, out=product)
                np.add(some, product, out=some)

    @in_default_environment
    def convert(self, values: Matrix, out: Matrix) -> None:
        """Write a matrix of any of our dtypes as float32 or float64; `out` is in C order.

        NumPy takes 1.7 ns for a float16, more than half of what its product with 256 rows takes, and does not
        know bfloat16 without `ml_dtypes`. So these are widened as integers. bfloat16 is the upper half of a
        float32. A float16 has 5 bits for the exponent and 10 behind the point, a float32 8 and 23: with the
        sign at the top and the others 13 places up it is a float32, too small by a factor of 2**112, of
        subnormal numbers as well. What is not finite has the largest exponent, and seems to be 2**16 or more.
        """
        is_half = values.dtype == np.float16
        if not is_half and values.dtype.names is None:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                np.copyto(out, values)
            return
        steps = max(1, _WIDENED // max(1, out.shape[1]))
        for start in range(0, len(out), steps):
            some, into = values[start : start + steps], out[start : start + steps]
            wide = into if out.dtype == np.float32 else np.empty(into.shape, np.float32)
            bits = wide.view(np.int32)
            np.copyto(bits, some.view(np.int16))
            np.left_shift(bits, 13 if is_half else 16, out=bits)
            if is_half:
                np.bitwise_and(bits, _WITHOUT_COPIES_OF_THE_SIGN, out=bits)
                np.multiply(wide, np.float32(2.0**112), out=wide)
                if wide.size and not -(2.0**16) < wide.min() <= wide.max() < 2.0**16:
                    np.copyto(wide, some)
            if wide is not into:
                np.copyto(into, wide)

    @in_default_environment
    def round(self, values: Matrix, out: Matrix) -> None:
        """Write a matrix of float32 or float64 in any of our dtypes, rounded to the nearest."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            np.copyto(out, values, casting="unsafe")


_WITHOUT_COPIES_OF_THE_SIGN = np.int32(-0x70002000)  # the bits 0x8fffe000


def is_multiplied_in_place(matrix: Matrix) -> bool:
    """Tell whether the matrix library reads a matrix where it is; of any other NumPy makes a copy."""
    size = matrix.itemsize
    return matrix.flags.aligned and any(
        inner == size and outer % size == 0 and outer >= size * length
        for inner, outer, length in (
            (matrix.strides[1], matrix.strides[0], matrix.shape[1]),
            (matrix.strides[0], matrix.strides[1], matrix.shape[0]),
        )
    )
