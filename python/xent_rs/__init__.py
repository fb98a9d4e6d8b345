"""Softmax cross-entropy and its gradient on the CPU, at the speed of the memory."""

from . import probability
from ._binary_cross_entropy import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_grad_hess,
)
from ._cross_entropy import cross_entropy, cross_entropy_with_grad, cross_entropy_with_grad_hess
from ._evaluation import Evaluation, Evaluator, evaluate
from ._kl_divergence import kl_divergence, kl_divergence_with_grad
from ._settings import get_num_threads, release_memory, set_num_threads, show_config
from ._softmax import log_softmax, logsumexp, selective_log_softmax, softmax
from ._statistics import RowStatistics, row_statistics
from ._xent_rs import InternalError, __version__

__all__ = [
    "Evaluation",
    "Evaluator",
    "InternalError",
    "RowStatistics",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_grad_hess",
    "cross_entropy",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "evaluate",
    "get_num_threads",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "logsumexp",
    "probability",
    "release_memory",
    "row_statistics",
    "selective_log_softmax",
    "set_num_threads",
    "show_config",
    "softmax",
]
