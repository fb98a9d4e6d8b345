"""Threads, kept memory, and what a report of a problem should quote."""

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


def release_memory() -> int:
    """Give the memory that is kept for the next results back to the system.

    A new array of 16 MiB or more, a gradient say, leaves its memory to the next when it dies: to have new
    memory from the system takes longer than to compute a gradient. What is kept and what such arrays hold is
    together never more than they held at once before. What no result takes for 5 seconds goes back by itself,
    and with Linux's huge pages the kernel takes it when memory runs short, so this is for those who need the
    memory at once. Arrays in use are not touched.

    Returns
    -------
    int
        How many bytes that were. `show_config` shows how many are kept.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_rs
    >>> probabilities = xent_rs.softmax(np.zeros((4, 2**20), np.float32))
    >>> del probabilities
    >>> released = xent_rs.release_memory()
    >>> xent_rs.release_memory()
    0
    """
    return _xent_rs.release_memory()


def show_config() -> None:
    """Print the version, the instruction sets, the threads and where their number is from, and kept memory.

    It is what a report of a problem should quote.
    """
    config = {**_xent_rs.config(), "kept_memory": f"{_xent_rs.kept_memory()} bytes"}
    width = max(map(len, config))
    for key, value in config.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:{width}}  {text}")
