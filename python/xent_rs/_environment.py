"""The default floating-point environment for what is computed in Python, as for the compiled functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from . import _xent_rs

_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_default_environment(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make `function` compute in the default environment, and give the caller's back.

    Otherwise it would flush small numbers to 0, or round otherwise, where the calling thread does:
    after ``torch.set_flush_denormal``, or in a thread of XLA.
    """

    @functools.wraps(function)
    def computed(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return _xent_rs.in_default_environment(function, *args, **kwargs)

    return computed
