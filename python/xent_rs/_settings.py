"""Threads, and what a report of a problem should quote."""

from __future__ import annotations

from . import _xent_rs


def set_num_threads(n: int) -> None:
    """Use `n` threads in calls from now on.

    Parameters
    ----------
    n : int
        At least 1. Without this call it is ``XENT_RS_NUM_THREADS``, or else ``OMP_NUM_THREADS``, or else the
        number of CPUs that the process may use. Small problems stay on the caller's thread, and no result
        depends on it.

    Raises
    ------
    ValueError
        If `n` is not a number of threads.

    Examples
    --------
    >>> import xent_rs
    >>> before = xent_rs.get_num_threads()
    >>> xent_rs.set_num_threads(1)
    >>> xent_rs.get_num_threads()
    1
    >>> xent_rs.set_num_threads(before)
    """
    _xent_rs.set_num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that calls use.

    Returns
    -------
    int
        See `set_num_threads`, which also has an example.
    """
    return _xent_rs.get_num_threads()


def show_config() -> None:
    """Print the version, the instruction sets, and the threads and where their number is from.

    It is what a report of a problem should quote.
    """
    config = _xent_rs.config()
    width = max(map(len, config))
    for key, value in config.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:{width}}  {text}")
