"""Softmax cross-entropy and its gradient on the CPU, at the speed of the memory.

Losses take logits: arrays of float16, bfloat16, float32 or float64 with the classes along the last axis, or
along `axis`. Each function has formulas, shapes, errors and examples: ``help(xent_rs.cross_entropy)``.

Loss of classes or probabilities
--------------------------------
cross_entropy                       -- softmax cross-entropy
cross_entropy_with_grad             -- the loss and its derivative with respect to the logits
cross_entropy_with_grad_hess        -- and the diagonal of the second derivative, for gradient boosting
cross_entropy_hvp                   -- the second derivative times a vector, for methods of second order
cross_entropy_target_grad           -- the derivative with respect to probabilities that are targets
cross_entropy_temperature_grad      -- the derivative with respect to the temperature

Loss of hidden states and the last layer, whose logits are never all in memory
------------------------------------------------------------------------------
linear_cross_entropy                -- softmax cross-entropy of hidden @ linear_weight.T + linear_bias
linear_cross_entropy_with_grad      -- and the derivatives with respect to states, weights and bias
LinearGradients                     -- what holds these

Loss of n-hot and multi-label targets
-------------------------------------
binary_cross_entropy                -- sigmoid cross-entropy, element by element
binary_cross_entropy_with_grad      -- the loss and its derivative
binary_cross_entropy_with_grad_hess -- and the second derivative, for gradient boosting

Distillation
------------
kl_divergence                       -- KL(teacher || model) and its kin, both given by logits
kl_divergence_with_grad             -- the divergence and its derivative
kl_divergence_hvp                   -- its second derivative times a vector
SparseTargets                       -- teachers of which a few classes of each row are stored

Evaluation
----------
evaluate                            -- loss, perplexity, accuracy, top-k accuracy and entropy in one pass
Evaluator                           -- the same, of logits that come in batches or from several processes
Evaluation                          -- what both return
compare                             -- two models: divergence, change of loss and probability, with errors
Comparer                            -- the same, of logits that come in batches or from several processes
Comparison                          -- what both return
ComparedModel                       -- what it holds of each model
GroupComparison                     -- and of each group
Estimate                            -- a figure and its standard error
row_statistics                      -- log-sum-exp, argmax, entropy, the target's rank, ... of each row
RowStatistics                       -- what it returns
partial_row_statistics              -- the same of logits whose classes are in shards, in several processes
RowState                            -- what it returns, to be merged
cross_entropy_grad                  -- the gradient of a shard, from the log-sum-exp of all classes

Softmax
-------
logsumexp                           -- log of the sum of the exponentials
softmax                             -- probabilities
log_softmax                         -- their logarithms
selective_log_softmax               -- log-probabilities of a few chosen classes in each row

Modules
-------
probability                         -- formulas of a textbook, of probabilities instead of logits
io                                  -- arrays in files (.npy, .npz, .safetensors, .kld), larger than memory

Frameworks, each a module to import by itself
---------------------------------------------
xent_rs.boosting                    -- objectives for XGBoost and LightGBM
xent_rs.dask                        -- evaluate, compare and cross_entropy of Dask arrays

Settings
--------
set_num_threads                     -- set the number of threads
get_num_threads                     -- get it
release_memory                      -- give memory that is kept for results back to the system
show_config                         -- version, instruction set, threads: for a bug report
InternalError                       -- what a fault of this package raises; please report it

The command ``xent-rs`` does the same with files: ``xent-rs --help``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import probability
from ._binary_cross_entropy import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_grad_hess,
)
from ._comparer import Comparer, compare
from ._comparison import ComparedModel, Comparison, GroupComparison
from ._cross_entropy import cross_entropy, cross_entropy_with_grad, cross_entropy_with_grad_hess
from ._cross_entropy_shard import cross_entropy_grad
from ._estimates import Estimate
from ._evaluation import Evaluation
from ._evaluator import Evaluator, evaluate
from ._hessian import cross_entropy_hvp, kl_divergence_hvp
from ._kl_divergence import kl_divergence, kl_divergence_with_grad
from ._linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_with_grad
from ._linear_gradients import LinearGradients
from ._partial_statistics import RowState, partial_row_statistics
from ._sensitivities import cross_entropy_target_grad, cross_entropy_temperature_grad
from ._settings import get_num_threads, release_memory, set_num_threads, show_config
from ._softmax import log_softmax, logsumexp, selective_log_softmax, softmax
from ._sparse_targets import SparseTargets
from ._statistics import RowStatistics, row_statistics
from ._xent_rs import InternalError, __version__

if TYPE_CHECKING:
    from . import io as io
else:

    def __getattr__(name):
        # On first use: with zipfile and json it takes longer to import than all the rest.
        if name == "io":
            return importlib.import_module(".io", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ComparedModel",
    "Comparer",
    "Comparison",
    "Estimate",
    "Evaluation",
    "Evaluator",
    "GroupComparison",
    "InternalError",
    "LinearGradients",
    "RowState",
    "RowStatistics",
    "SparseTargets",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_grad_hess",
    "compare",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_hvp",
    "cross_entropy_target_grad",
    "cross_entropy_temperature_grad",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "evaluate",
    "get_num_threads",
    "kl_divergence",
    "kl_divergence_hvp",
    "kl_divergence_with_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "logsumexp",
    "partial_row_statistics",
    "probability",
    "release_memory",
    "row_statistics",
    "selective_log_softmax",
    "set_num_threads",
    "show_config",
    "softmax",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "io"])
