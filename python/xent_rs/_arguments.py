"""What arguments may be, where Python looks at them."""

from __future__ import annotations

import operator


def integer(value: object, what: str) -> int:
    """Return an integer that is no truth value; `what` begins the error: ``axis is``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} {value!r}; expected an integer") from None
