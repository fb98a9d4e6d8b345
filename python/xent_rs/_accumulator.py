"""What `Evaluator` and `Comparer` are: options, and sums of batches that come in any order."""

from __future__ import annotations

import abc
import operator
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ._arguments import are_equal, class_weight, text_of, top_ks, with_arrays
from ._options import Options

if TYPE_CHECKING:
    from typing_extensions import Self


class Sums(Protocol):
    """What was seen, in one value: what interrupts an update comes before or after all of it."""

    @property
    def rows(self) -> int:
        """Number of rows that count."""

    @property
    def ignored(self) -> int:
        """Number of rows that do not."""

    def __add__(self, other: Self) -> Self:
        """Add what other batches have."""

    def check_like(self, other: Self) -> None:
        """Refuse other batches that are of another kind: of another number of classes, say."""


_Sums = TypeVar("_Sums", bound=Sums)

# Held while sums are added, which takes microseconds.
_including = threading.Lock()


def _renew() -> None:
    """Let a child have its own: nobody is left in it who might hold that of its parent."""
    global _including
    _including = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)

# How options are kept, by name; all others are numbers.
_AS: dict[str, Callable[[Any], Any]] = {
    "top_k": top_ks,
    "weight": class_weight,
    "ignore_index": operator.index,
    "softcap": lambda height: None if height is None else float(height),
    "axis": operator.index,
}


class Accumulator(abc.ABC, Generic[_Sums]):
    """Sums batches with the same options.

    Parameters
    ----------
    keywords : Options
        The options that there are.
    given : dict
        Those that were given.

    Attributes
    ----------
    _options : dict
        All options, in the order of their declaration.
    _sums : Sums
        What was seen.
    """

    def __init__(self, keywords: Options, given: Mapping[str, Any]) -> None:
        given = with_arrays(given)
        keywords.check(given)
        self._options: dict[str, Any] = {
            name: _AS.get(name, float)(value) for name, value in {**keywords.defaults, **given}.items()
        }
        self._sums: _Sums = self._nothing()

    @property
    def _axis(self) -> int:
        axis: int = self._options["axis"]
        return axis

    @property
    def _ignore_index(self) -> int:
        ignore_index: int = self._options["ignore_index"]
        return ignore_index

    def _include(self, seen: _Sums) -> None:
        """Add what batches have, of which the kind may differ; several threads may add theirs at once."""
        with _including:
            self._sums.check_like(seen)
            self._sums = self._sums + seen

    @abc.abstractmethod
    def _nothing(self) -> _Sums:
        """Return the sums of no batch."""

    @abc.abstractmethod
    def _counted(self) -> object:
        """Return what was seen, as it is kept in files."""

    def merge(self, other: Self) -> Self:
        """Add everything that another one with the same options has seen.

        Parameters
        ----------
        other : Evaluator or Comparer
            One of the same kind; it stays as it is.

        Returns
        -------
        Evaluator or Comparer
            This one.

        Raises
        ------
        TypeError
            If `other` is of another kind.
        ValueError
            If `other` has other options, or has seen another number of classes, or, of a comparer, targets or
            groups where this one has not.
        """
        kind = type(self).__name__
        if not isinstance(other, type(self)):
            article = "an" if kind[0] in "AEIOU" else "a"
            raise TypeError(f"other is of type {type(other).__name__}; expected {article} {kind}")
        for name, expected in self._options.items():
            found = other._options[name]
            if not are_equal(found, expected):
                raise ValueError(f"other has {name} {text_of(found)}; expected {text_of(expected)}")
        self._include(other._sums)
        return self

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={text_of(value)}" for name, value in self._options.items())
        return f"<{type(self).__name__}({options}): {self._sums.rows} rows, {self._sums.ignored} ignored>"

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what Dask makes names of; the values of rows, if there are any, in the order they came."""
        return type(self).__qualname__, self._options, self._counted()


def check_classes_seen(found: int | None, expected: int | None) -> None:
    """Refuse sums of logits of another number of classes; None of no batch."""
    if None not in (found, expected) and found != expected:
        raise ValueError(f"other has seen logits of {found} classes; expected {expected}")
