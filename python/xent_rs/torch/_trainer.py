"""What transformers' Trainer calls: a loss of causal language models, and figures of an evaluation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from .._evaluator import Evaluator
from ._functions import check_tensors, loss_of, number

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._evaluation_options import EvaluatorOptions

_IGNORED = -100  # what transformers pads labels with


def causal_lm_loss(
    outputs: Mapping[str, Any] | tuple[Any, ...],
    labels: Tensor,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each token given those before it, for ``Trainer(compute_loss_func=causal_lm_loss)``.

    The logits at position i are for the label at i + 1. It is the loss that the models of transformers
    compute from labels; the logits are neither copied nor converted to float32 for it.

    Parameters
    ----------
    outputs : mapping or tuple
        What the model returns: its ``"logits"``, or else its first entry, of shape (..., positions, classes).
    labels : Tensor of integers, of shape (..., positions)
        The tokens; those that are -100 do not count.
    num_items_in_batch : int or Tensor of one number, optional
        What the sum of the losses is divided by: the Trainer counts the tokens of all the batches whose
        gradients it accumulates. By default the number of tokens that count.

    Returns
    -------
    Tensor
        A number; float32 for 16-bit logits.

    Raises
    ------
    TypeError
        If there are no labels.

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> outputs = {"logits": torch.zeros(1, 4, 10)}
    >>> print(f"{xent_rs.torch.causal_lm_loss(outputs, torch.tensor([[1, 2, 3, -100]])):.4f}")
    2.3026
    """
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    check_tensors(logits=logits, labels=labels)
    # The labels move, not the logits: slices of those would cost a gradient of its own.
    following = functional.pad(labels, (0, 1), value=_IGNORED)[..., 1:].to(logits.device)
    return loss_of(
        "cross_entropy",
        num_items_in_batch is not None,
        logits.movedim(-1, 1),
        following,
        (None, None, number(num_items_in_batch)),
        (_IGNORED, 0.0, 0.0, None, 1.0, 0.0, 0.0, "mean"),
        dtype=torch.promote_types(logits.dtype, torch.float32),
    )


class EvaluatorMetrics:
    """Figures of an evaluation, for ``Trainer(compute_metrics=EvaluatorMetrics())``.

    With ``TrainingArguments(batch_eval_metrics=True)`` each batch is added to an `xent_rs.Evaluator` and
    forgotten, so that the logits of a whole evaluation are never held. The figures are the entries of
    `xent_rs.Evaluation.as_dict`. The Trainer prefixes them, as in ``eval_perplexity``; its ``eval_loss``
    becomes the mean over all tokens, where it is the mean of the batches' means otherwise.

    Parameters
    ----------
    shift : bool, optional
        Whether logits of three dimensions, (batch, positions, classes), are for the label at the next
        position, as those of causal language models are; True by default. For a label for each token, as in
        tagging, let it be False. Logits of two dimensions are for their own labels in any case.
    **options
        Those of `xent_rs.Evaluator`.

    Examples
    --------
    >>> import torch, types, xent_rs.torch
    >>> metrics = xent_rs.torch.EvaluatorMetrics(top_k=(2,))
    >>> batch = types.SimpleNamespace(predictions=torch.zeros(1, 3, 4), label_ids=torch.tensor([[0, 1, 2]]))
    >>> metrics(batch, compute_result=False)
    {}
    >>> figures = metrics(batch, compute_result=True)
    >>> figures["perplexity"], figures["top_2"], figures["rows"]
    (4.0, 0.5, 4.0)
    """

    def __init__(self, *, shift: bool = True, **options: Unpack[EvaluatorOptions]) -> None:
        self._shift = shift
        self._empty = Evaluator(**options)
        self._evaluator = copy.copy(self._empty)

    def __call__(self, evaluated: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch, and with `compute_result` return the figures of all since the last such call.

        Parameters
        ----------
        evaluated : transformers.EvalPrediction
            ``predictions``, the logits or a tuple that begins with them, and ``label_ids``.
        compute_result : bool, optional
            Whether this is the last batch.

        Returns
        -------
        dict of str to float
            The figures; empty before the last batch.
        """
        logits, labels = evaluated.predictions, evaluated.label_ids
        if isinstance(logits, tuple):
            logits = logits[0]
        if self._shift and logits.ndim == 3:
            logits, labels = logits[:, :-1], labels[:, 1:]
        self._evaluator.update(_in_cpu_memory(logits), _in_cpu_memory(labels))
        if not compute_result:
            return {}
        result = self._evaluator.result()
        self._evaluator = copy.copy(self._empty)
        return result.as_dict()


def _in_cpu_memory(values: Any) -> Any:
    return values.detach().cpu() if isinstance(values, Tensor) else values
