"""The problems of the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.random  # before anything is measured: Ctrl-C during this import is lost
from numpy.typing import NDArray

from ... import _xent_rs
from ..._bfloat16 import bfloat16
from .reference import Reference

if TYPE_CHECKING:
    from typing_extensions import Self

Array = NDArray[Any]

LOSS = "loss"
GRADIENT = "loss + gradient"
JOBS = (LOSS, GRADIENT)

#: How often the time of each of `Case.roofs` counts in the roof of a job.
ROOFS = {LOSS: {"read": 1.0}, GRADIENT: {"copy": 1.0}}


class Case:
    """One problem: logits of shape (rows, classes), the class of each row, and the float64 answer."""

    def __init__(self, logits: Array, targets: Array) -> None:
        self.logits, self.targets = logits, targets
        self.rows, self.classes = logits.shape
        self.dtype = logits.dtype

    @classmethod
    def random(cls, rows: int, classes: int, dtype: str) -> Self:
        """Return a case with normal random logits, and any classes."""
        random = np.random.default_rng(0)
        # Made in float32 for float64, too: half of such a number is then zeros and not a random, maybe
        # subnormal, float32 to `memory_copy`, which reads all bytes as float32.
        logits = random.standard_normal((rows, classes), np.float32)
        kept = logits.astype(bfloat16() if dtype == "bfloat16" else dtype, copy=False)
        return cls(kept, random.integers(classes, size=rows))

    @cached_property
    def out(self) -> Array:
        """Memory of the size of the logits, all of it in place."""
        out = np.empty_like(self.logits)
        out.fill(0)
        return out

    @cached_property
    def reference(self) -> Reference:
        """The answer in float64."""
        return Reference(self.logits, self.targets)

    @cached_property
    def loss(self) -> float:
        """The mean loss in float64."""
        return float(self.reference.losses.mean())

    @property
    def name(self) -> str:
        """Shape and dtype."""
        return f"{self.rows} x {self.classes} {self.dtype.name}"

    @property
    def fields(self) -> dict[str, Any]:
        """Shape and dtype, as results have them."""
        return {"rows": self.rows, "classes": self.classes, "dtype": self.dtype.name}

    @property
    def eps(self) -> float:
        """Distance from 1 to the next number of the dtype of the logits."""
        return float(finfo(self.dtype).eps)

    def roofs(self) -> dict[str, Callable[[], Any]]:
        """Return the calls that only read the logits, and that only read them and write as much."""
        return {"read": reads(self.logits), "copy": copies(self.logits, self.out)}

    def errors(self, answer: Any) -> tuple[float, float | None]:
        """Return the relative error of a loss, and the largest of any entry of its gradient if there is one.

        What rounding to a subnormal number does to an entry does not count.
        """
        loss, gradient = answer if isinstance(answer, tuple) else (answer, None)
        loss_error = abs(float(loss) - self.loss) / self.loss
        if gradient is None:
            return loss_error, None
        gradient = np.asarray(gradient)
        tiny = float(finfo(gradient.dtype).smallest_subnormal)
        largest = 0.0
        for rows in self.reference.blocks():
            expected = self.reference.gradient(rows)
            error = gradient[rows].astype(np.float64)
            error -= expected
            np.abs(error, out=error)
            error -= tiny
            np.abs(expected, out=expected)
            error /= expected
            # NaN must not get lost in a maximum.
            worst = float(error.max())
            if not worst <= largest:
                largest = worst
        return loss_error, largest


def finfo(dtype: np.dtype[Any]) -> Any:
    """Return what `numpy.finfo` does, also of bfloat16."""
    if dtype.name != "bfloat16":
        return np.finfo(dtype)
    import ml_dtypes

    of_any: Any = ml_dtypes.finfo  # not typed
    return of_any(dtype)


def reads(*arrays: Array) -> Callable[[], Any]:
    """Return the call that reads arrays, one after the other, with all threads."""
    words = [_words(array) for array in arrays]
    if len(words) == 1:
        (only,) = words
        return lambda: _xent_rs.memory_read(only)

    def call() -> None:
        for array in words:
            _xent_rs.memory_read(array)

    return call


def copies(array: Array, out: Array) -> Callable[[], Any]:
    """Return the call that reads an array and writes as many bytes, with all threads."""
    source, target = _words(array), _words(out)
    return lambda: _xent_rs.memory_copy(source, target)


def _words(array: Array) -> Array:
    """Return the bytes of an array as float32, without those that are too few for one."""
    content = array.reshape(-1).view(np.uint8)
    return content[: len(content) // 4 * 4].view(np.float32)
