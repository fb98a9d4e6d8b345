"""Evaluation and losses of Dask arrays, in any chunks of rows and of classes: lazy, on threads or machines.

The functions have the names, the options and the meaning of those of the package, take Dask arrays, and
return what computes later: a `dask.delayed.Delayed`, or a Dask array. What goes from worker to worker is
small: some sums for each chunk of rows, and, where the classes are in several chunks, some numbers a row for
each of them.

Functions
---------
evaluate        -- loss, perplexity, accuracy, top-k accuracy and entropy
compare         -- two models: divergence, change of loss and probability, with errors
cross_entropy   -- softmax cross-entropy

Examples
--------
>>> import dask.array, numpy as np
>>> import xent_rs.dask
>>> logits = dask.array.zeros((6, 8), np.float32, chunks=(2, 4))
>>> result = xent_rs.dask.evaluate(logits, np.arange(6))
>>> round(result.compute().perplexity, 6)
8.0
"""

from __future__ import annotations

try:
    import dask
except ImportError as error:
    raise ImportError(f"xent_rs.dask needs Dask ({error}): pip install xent_rs[dask]") from None

_OLDEST = (2025, 5)
_VERSION: str = vars(dask)["__version__"]  # which its types do not have
if tuple(int(number) for number in _VERSION.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"xent_rs.dask needs Dask {_OLDEST[0]}.{_OLDEST[1]} or newer, and this is {_VERSION}: "
        "pip install --upgrade xent_rs[dask]"
    )

from ._functions import compare, cross_entropy, evaluate  # noqa: E402

__all__ = ["compare", "cross_entropy", "evaluate"]
