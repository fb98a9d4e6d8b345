"""The losses as functions of tensors, with their derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _xent_rs
from .._options import Kind, Reduction
from ._formulas import FORMULAS, is_given
from ._operators import OPERATORS, class_axis

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Other subclasses of tensors mean something that the kernels do not know.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of logits with classes or probabilities: `torch.nn.functional.cross_entropy`.

    Of a row with the class y it is, without options, ``log Σ exp x - x[y]``; `xent_rs.cross_entropy` has the
    formula with all of them.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d1, ...)
        Logits, the classes along dimension 1; of float16, bfloat16, float32 or float64, in any memory layout.
    target : Tensor
        Integers: the class of each row, in the shape of `input` without the classes. Floats of the shape of
        `input`: probabilities.
    weight : Tensor of shape (C), optional
        A weight for each class.
    size_average, reduce : bool, optional
        Deprecated by PyTorch; they replace `reduction`.
    ignore_index : int, optional
        Rows with this class have loss 0 and do not count.
    reduction : {'mean', 'sum', 'none'}, optional
        The mean is over rows, weighted by ``weight[target]``; that of probabilities divides by their number.
    label_smoothing : float, optional
        The share of the target that is spread evenly over all classes.
    z_loss : float, optional
        Factor of the squared log-sum-exp, which is added to the loss of each row.
    softcap : float, optional
        Replaces the logits x by ``softcap * tanh(x / softcap)``.
    temperature : float, optional
        Divides the logits, after the softcap.
    focal_gamma : float, optional
        Multiplies the loss of a row by ``(1 - p)**focal_gamma``, p being the probability of its class (focal
        loss). For classes without `label_smoothing`.
    poly_epsilon : float, optional
        Adds ``poly_epsilon·(1 - p)`` to the loss of a row (PolyLoss). For classes without `label_smoothing`.
    sample_weight : Tensor, optional
        A weight for each row. A row of weight 0 is left out, whatever its logits hold.
    denominator : float or Tensor of one number, optional
        Replaces the divisor of the mean: a number of tokens under gradient accumulation, say.

    Returns
    -------
    Tensor
        A number, or for 'none' one for each row; of the dtype of `input`, and float32 for 16-bit logits under
        `torch.autocast`.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        As PyTorch's function, for arguments that do not go together; ValueError for an option out of its
        range.
    IndexError
        For a target that is neither a class nor `ignore_index`.

    See Also
    --------
    CrossEntropyLoss : The same as a module.
    xent_rs.cross_entropy : The same for arrays.

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]], requires_grad=True)
    >>> loss = xent_rs.torch.cross_entropy(logits, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> print(f"{loss:.4f}", logits.grad[1])
    0.7578 tensor([ 0.1667,  0.1667, -0.3333])
    """
    check_tensors({"weight": weight, "sample_weight": sample_weight}, input=input, target=target)
    check_ignored(ignore_index, target)
    return loss_of(
        "cross_entropy",
        has_own_options(z_loss, softcap, temperature, focal_gamma, poly_epsilon, sample_weight, denominator),
        input,
        target,
        (weight, sample_weight, number(denominator)),
        (
            ignore_index,
            label_smoothing,
            z_loss,
            softcap,
            temperature,
            focal_gamma,
            poly_epsilon,
            _reduction(size_average, reduce, reduction),
        ),
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of logits: `torch.nn.functional.binary_cross_entropy_with_logits`.

    Of an element with logit x and target t it is, without options, ``(1 - t)·x + log(1 + exp(-x))``;
    `xent_rs.binary_cross_entropy` has the formula with all of them.

    Parameters
    ----------
    input : Tensor
        Logits, of any shape; of float16, bfloat16, float32 or float64, in any memory layout.
    target : Tensor
        The shape of `input`: 0 is no, 1 is yes, and between them are probabilities.
    weight, pos_weight : Tensor, optional
        A weight for each element, and a factor where the target is yes; they broadcast to `input`.
    size_average, reduce : bool, optional
        Deprecated by PyTorch; they replace `reduction`.
    reduction : {'mean', 'sum', 'none'}, optional
        The mean is over elements, whatever their weights.
    ignore_index : int, optional
        Elements with this target have loss 0 and do not count.
    label_smoothing : float, optional
        The share of the target that is spread evenly over yes and no.
    focal_gamma : float, optional
        Multiplies the loss of an element by ``(1 - p)**focal_gamma``, p being the probability of its target,
        after the smoothing (focal loss). For targets from 0 to 1.
    denominator : float or Tensor of one number, optional
        Replaces the divisor of the mean.

    Returns
    -------
    Tensor
        A number, or for 'none' one for each element; of the dtype of `input`, and float32 for 16-bit logits
        under `torch.autocast`.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        As PyTorch's function, for arguments that do not go together; ValueError for an option out of its
        range.

    See Also
    --------
    BCEWithLogitsLoss : The same as a module.
    xent_rs.binary_cross_entropy : The same for arrays.

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> logits = torch.tensor([2.0, -1.0, 0.0], requires_grad=True)
    >>> loss = xent_rs.torch.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0, 1.0]))
    >>> loss.backward()
    >>> print(f"{loss:.4f}", logits.grad)
    0.3778 tensor([-0.0397,  0.0896, -0.1667])
    """
    check_tensors({"weight": weight, "pos_weight": pos_weight}, input=input, target=target)
    return loss_of(
        "binary_cross_entropy",
        is_given((label_smoothing, 0), (focal_gamma, 0), (ignore_index, None), (denominator, None)),
        input,
        target,
        (weight, pos_weight, number(denominator)),
        (ignore_index, label_smoothing, focal_gamma, _reduction(size_average, reduce, reduction)),
    )


def kl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    kind: Kind = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    axis: int = -1,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Divergence of the softmax of two tensors of logits: KL(teacher || model), or another `kind`.

    With ``lp`` and ``lt`` the log-softmax of `logits` and `target_logits`, each divided by `temperature`, a
    row's loss is ``Σ exp(lt)·(lt - lp)``. Of rows in one dimension it is ``torch.nn.functional.kl_div(lp, lt,
    log_target=True, reduction="batchmean")``. There is no factor ``temperature**2``.

    Parameters
    ----------
    logits : Tensor
        Those of the model, of any shape; of float16, bfloat16, float32 or float64, in any memory layout.
    target_logits : Tensor
        Those of the teacher, in the shape of `logits`.
    kind : {'forward', 'reverse', 'jensen_shannon'}, optional
        'reverse' is KL(model || teacher); 'jensen_shannon' ``β·KL(teacher || m) + (1 - β)·KL(model || m)``
        with ``m = β·teacher + (1 - β)·model``, as in TRL and Liger.
    beta : float, optional
        The β of 'jensen_shannon', above 0 and below 1.
    temperature : float, optional
        Divides both.
    axis : int, optional
        The dimension of the classes; the last by default.
    reduction : {'mean', 'sum', 'none'}, optional
        The mean is over rows, weighted by `sample_weight`.
    sample_weight : Tensor, optional
        A weight for each row: the shape of `logits` without `axis`. A row of weight 0 is left out, whatever
        its logits hold.
    denominator : float or Tensor of one number, optional
        Replaces the divisor of the mean.

    Returns
    -------
    Tensor
        A number, or for 'none' one for each row; of the dtype of `logits`, and float32 for 16-bit logits
        under `torch.autocast`.

    Raises
    ------
    TypeError, ValueError
        For a dtype that is not a float, shapes that do not match, or an option out of its range.
    IndexError
        For an axis out of range.

    See Also
    --------
    xent_rs.kl_divergence : The same for arrays.

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> model = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    >>> teacher = torch.tensor([[0.25, 0.25, 0.5]]).log()
    >>> loss = xent_rs.torch.kl_divergence(model, teacher)
    >>> loss.backward()
    >>> print(f"{loss:.4f}", model.grad)
    0.1733 tensor([[ 0.2500,  0.0000, -0.2500]])
    """
    check_tensors({"sample_weight": sample_weight}, logits=logits, target_logits=target_logits)
    if target_logits.shape != logits.shape:
        raise ValueError(
            f"target_logits have shape {tuple(target_logits.shape)}; expected {tuple(logits.shape)}, "
            "that of logits"
        )
    place = class_axis(logits)
    return loss_of(
        "kl_divergence",
        True,
        logits.movedim(axis, place),
        target_logits.movedim(axis, place),
        (sample_weight, number(denominator)),
        (kind, beta, temperature, reduction),
    )


def check_ignored(ignore_index: int, target: Tensor) -> None:
    """Refuse, as PyTorch does, an index that is ignored among probabilities."""
    if ignore_index >= 0 and target.is_floating_point():
        raise RuntimeError(
            f"ignore_index is not supported for floating point target; ignore_index is {ignore_index}, "
            "expected a negative number"
        )


def has_own_options(
    z_loss: float,
    softcap: float | None,
    temperature: float,
    focal_gamma: float,
    poly_epsilon: float,
    sample_weight: Tensor | None,
    denominator: float | Tensor | None,
) -> bool:
    """Tell whether a cross-entropy has options that PyTorch does not have."""
    numbers = ((z_loss, 0), (temperature, 1), (focal_gamma, 0), (poly_epsilon, 0))
    return is_given(*numbers, (softcap, None), (sample_weight, None), (denominator, None))


def loss_of(
    name: str,
    own_options: bool,
    logits: Tensor,
    targets: Tensor,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[Any, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return a loss by the kernels, or by PyTorch where they do not reach.

    Parameters
    ----------
    name : str
        Which of `OPERATORS`.
    own_options : bool
        Whether there are options that PyTorch does not have.
    logits, targets, tensors, numbers
        What the operator takes.
    dtype : torch.dtype, optional
        That of the loss; PyTorch's by default.
    """
    if dtype is None:
        dtype = logits.dtype
        if targets.is_floating_point():
            dtype = torch.promote_types(dtype, targets.dtype)
    # A number that is a tensor may have a derivative: a temperature that is learned.
    learned = any(isinstance(number, Tensor) for number in numbers)
    operators = OPERATORS[name]
    soft = operators.target_grad is not None and targets.is_floating_point()
    soft = soft and not learned and operators.has_further_derivatives(numbers)
    if not learned and within_reach(logits, (targets.detach() if soft else targets, *tensors)):
        if dtype.itemsize == 2 and torch.is_autocast_enabled("cpu"):
            dtype = torch.float32
        try:
            return _by_kernels(name, own_options, logits, (targets, *tensors), (*numbers, dtype))
        except (TypeError, ValueError):
            # PyTorch knows best what its own arguments may be, and says it in its own words. A setting in the
            # environment is none of them: one without a meaning raises here.
            _xent_rs.config()
            if own_options:
                raise
    return FORMULAS[name](own_options, logits, targets, *tensors, *numbers, dtype)


def _by_kernels(
    name: str,
    own_options: bool,
    logits: Tensor,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[Any, ...],
) -> Tensor:
    loss: Tensor
    if (logits.requires_grad or _requires_grad(tensors[0])) and torch.is_grad_enabled():
        # A mean or a sum is mostly the end of a graph, with the derivative 1: its gradient is computed along
        # with it, and the logits are read once. A compiled graph could not look at the derivative.
        *_, reduction, _ = numbers
        at_once = logits.requires_grad and reduction != "none" and not torch.compiler.is_compiling()
        loss = _Loss.apply(name, own_options, at_once, numbers, logits, *tensors)
    else:
        loss = OPERATORS[name].loss(logits, *tensors, *numbers)
    return loss


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _by_formula(ctx: Any, tensors: Sequence[Tensor]) -> Tensor:
    """Return a loss in PyTorch's own operations, to be differentiated."""
    with torch.enable_grad():
        return FORMULAS[ctx.name](ctx.own_options, *tensors, *ctx.numbers)


def _gradients(
    output: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool], grad_output: Tensor, graph: bool
) -> list[Tensor | None]:
    """Return the gradients of those tensors by which they are wanted, and None for the others."""
    given = [tensor for tensor, is_wanted in zip(tensors, wanted, strict=True) if is_wanted]
    found = iter(torch.autograd.grad(output, given, grad_output, create_graph=graph))
    return [next(found) if is_wanted else None for is_wanted in wanted]


class _Loss(torch.autograd.Function):
    """A loss whose gradient is computed when it is wanted, or along with the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        own_options: bool,
        at_once: bool,
        numbers: tuple[Any, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.name, ctx.own_options, ctx.numbers = name, own_options, numbers
        loss: Tensor
        gradient = None
        if at_once:
            loss, gradient = OPERATORS[name].with_grad(None, *tensors, *numbers)
        else:
            loss = OPERATORS[name].loss(*tensors, *numbers)
        ctx.save_for_backward(gradient, *tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *tensors = ctx.saved_tensors
        wanted, operators = ctx.needs_input_grad[4:], OPERATORS[ctx.name]
        of_logits, of_targets, *others = wanted
        compiling = torch.compiler.is_compiling()
        # The gradient is to be differentiated in turn, or asked for of many derivatives at once.
        twice = not compiling and torch.is_grad_enabled()
        by_kernel = operators.hvp is not None and operators.has_further_derivatives(ctx.numbers)
        by_kernel = by_kernel and not of_targets
        if not compiling and (stands_for_several(grad_output) or (twice and not by_kernel)):
            found = _gradients(_by_formula(ctx, tensors), tensors, wanted, grad_output, twice)
            return (None, None, None, None, *found)
        of_target = None
        if of_targets:
            of_target = operators.target_grad(grad_output, *tensors, *ctx.numbers)
        if twice:
            gradient = _Gradient.apply(ctx.name, ctx.own_options, ctx.numbers, grad_output, *tensors)
        elif of_logits and (compiling or gradient is None or grad_output.item() != 1):
            _, gradient = operators.with_grad(grad_output, *tensors, *ctx.numbers)
        elif of_logits and is_graph_kept():
            gradient = gradient.clone()  # what is kept for another backward pass is not the caller's
        return (None, None, None, None, gradient, of_target, *(None for _ in others))


class _Gradient(torch.autograd.Function):
    """The gradient of a loss by its logits, whose own derivative is a Hessian times a vector."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        own_options: bool,
        numbers: tuple[Any, ...],
        grad_output: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.name, ctx.own_options, ctx.numbers = name, own_options, numbers
        ctx.save_for_backward(grad_output, *tensors)
        gradient: Tensor
        _, gradient = OPERATORS[name].with_grad(grad_output, *tensors, *numbers)
        return gradient

    @staticmethod
    def backward(ctx: Any, vector: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, *tensors = ctx.saved_tensors
        (logits, *_), operators = tensors, OPERATORS[ctx.name]
        of_grad_output, of_logits, *others = ctx.needs_input_grad[3:]
        first = second = None
        if torch.is_grad_enabled() or stands_for_several(vector):
            # To be differentiated once more, or asked for of many vectors at once.
            loss, graph = _by_formula(ctx, tensors), torch.is_grad_enabled()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss, logits, grad_output, create_graph=True)
            wanted = (of_grad_output, of_logits)
            first, second = _gradients(gradient, (grad_output, logits), wanted, vector, graph)
        else:
            if of_grad_output:
                _, gradient = operators.with_grad(None, *tensors, *ctx.numbers)
                axes = class_axis(gradient) if grad_output.dim() else tuple(range(gradient.dim()))
                wide = torch.promote_types(grad_output.dtype, torch.float32)
                first = (gradient * vector).sum(axes, dtype=wide).to(grad_output.dtype)
            if of_logits:
                second = operators.hvp(vector, grad_output, *tensors, *ctx.numbers)
        return (None, None, None, first, second, *(None for _ in others))


def within_reach(logits: Tensor, tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the kernels can take these tensors, and no derivative is wanted but the logits'."""
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        logits.dtype in _DTYPES
        and all(
            type(tensor) in _PLAIN
            and tensor.device.type == "cpu"
            and tensor.layout is torch.strided
            and not tensor.is_nested
            for tensor in (logits, *given)
        )
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        # An exported program is to run, and to be trained, where this package is not. (`is_exporting` is true
        # under `torch.compile` too in some versions.)
        and not torch.compiler._is_exporting_flag
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def stands_for_several(grad_output: Tensor) -> bool:
    """Whether this is one derivative of several: under `torch.func.vmap`, or with ``is_grads_batched``."""
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(grad_output)
    )


def is_graph_kept() -> bool:
    """Whether there may be another backward pass through the graph, as by ``retain_graph=True``."""
    if torch.compiler.is_compiling():
        return False
    of_graph_task = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return of_graph_task is None or bool(of_graph_task())


def check_tensors(optional: Mapping[str, Any] | None = None, /, **required: Any) -> None:
    """Raise TypeError for what is not a tensor; what is optional may be None."""
    given = {name: value for name, value in (optional or {}).items() if value is not None}
    for name, value in {**required, **given}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor")


def number(value: float | Tensor | None) -> Tensor | None:
    """Return a number as a tensor: a compiled graph then holds for every value."""
    if isinstance(value, Tensor):
        return value.reshape(()) if value.dim() and value.numel() == 1 else value
    return None if value is None else torch.tensor(value, dtype=torch.float64, device="cpu")


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is None and reduce is None:
        if not isinstance(reduction, str):
            raise ValueError(
                f"{reduction} is not a valid value for reduction; expected 'mean', 'sum' or 'none'"
            )
        return reduction
    legacy: str = torch.nn._reduction.legacy_get_string(size_average, reduce)
    return legacy
