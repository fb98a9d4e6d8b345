"""Softmax cross-entropy and its gradient on the CPU, at the speed of the memory."""

from ._evaluation import Evaluation, Evaluator, evaluate
from ._functional import (
    cross_entropy,
    cross_entropy_with_grad,
    get_num_threads,
    log_softmax,
    logsumexp,
    set_num_threads,
    show_config,
    softmax,
)
from ._xent_rs import InternalError, __version__

__all__ = [
    "Evaluation",
    "Evaluator",
    "InternalError",
    "__version__",
    "cross_entropy",
    "cross_entropy_with_grad",
    "evaluate",
    "get_num_threads",
    "log_softmax",
    "logsumexp",
    "set_num_threads",
    "show_config",
    "softmax",
]
