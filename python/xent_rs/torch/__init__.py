"""The losses for PyTorch: tensors in CPU memory in, gradients by ``backward``, nothing copied.

Functions and modules have the arguments, the meaning and the class dimension of PyTorch's, and options that
PyTorch does not have. What the kernels do not cover is computed by PyTorch: other devices, targets that need
a gradient, `torch.func`, forward-mode differentiation, subclasses of tensors.

Losses
------
cross_entropy                       -- for torch.nn.functional.cross_entropy
binary_cross_entropy_with_logits    -- for torch.nn.functional.binary_cross_entropy_with_logits
linear_cross_entropy                -- of hidden states and the last layer, never all logits in memory
kl_divergence                       -- KL(teacher || model) and its kin, both given by logits
CrossEntropyLoss                    -- for torch.nn.CrossEntropyLoss
BCEWithLogitsLoss                   -- for torch.nn.BCEWithLogitsLoss

For the Trainer of transformers
-------------------------------
causal_lm_loss                      -- Trainer(compute_loss_func=causal_lm_loss)
EvaluatorMetrics                    -- Trainer(compute_metrics=EvaluatorMetrics())
"""

from __future__ import annotations

try:
    import torch
except ImportError as error:
    raise ImportError(f"xent_rs.torch needs PyTorch ({error}): pip install xent_rs[torch]") from None

_OLDEST = (2, 7)
if tuple(int(number) for number in torch.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"xent_rs.torch needs PyTorch {_OLDEST[0]}.{_OLDEST[1]} or newer, and this is {torch.__version__}: "
        "pip install --upgrade xent_rs[torch]"
    )

from ._functions import binary_cross_entropy_with_logits, cross_entropy, kl_divergence  # noqa: E402
from ._linear import linear_cross_entropy  # noqa: E402
from ._modules import BCEWithLogitsLoss, CrossEntropyLoss  # noqa: E402
from ._trainer import EvaluatorMetrics, causal_lm_loss  # noqa: E402

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "EvaluatorMetrics",
    "binary_cross_entropy_with_logits",
    "causal_lm_loss",
    "cross_entropy",
    "kl_divergence",
    "linear_cross_entropy",
]
