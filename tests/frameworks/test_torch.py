"""`xent_rs.torch`: PyTorch's own samples of its losses, and all ways in which tensors are differentiated."""

import copy
import functools
import gc
import itertools
import math
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xent_rs

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("expecttest", reason="the samples of PyTorch need expecttest")

from torch.nn import functional  # noqa: E402
from torch.testing import assert_close  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

import xent_rs.torch as xt  # noqa: E402

from ..combinations import pairwise  # noqa: E402

VERSION = tuple(int(number) for number in torch.__version__.split(".")[:2])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
#: Our functions by the names of PyTorch's.
FUNCTIONS = {name: getattr(xt, name) for name in ("cross_entropy", "binary_cross_entropy_with_logits")}
MODULES = {name: getattr(xt, name) for name in ("CrossEntropyLoss", "BCEWithLogitsLoss")}
CLOSE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 1e-2, "atol": 2e-3},
    torch.float16: {"rtol": 1e-3, "atol": 2e-4},
}


class Calls(TorchDispatchMode):
    """The operators of xent_rs that are called meanwhile."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "xent_rs":
            self.names.append(function.name().removeprefix("xent_rs::"))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def seeded():
    torch.manual_seed(20240607)


pytestmark = [
    pytest.mark.usefixtures("seeded"),
    # Of PyTorch's own, in older versions.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture
def calls():
    with Calls() as calls:
        yield calls.names


def problem(rows=6, classes=5, dtype=torch.float64):
    logits = (3 * torch.randn(rows, classes)).to(dtype).requires_grad_()
    return logits, torch.randint(0, classes, (rows,))


def value_and_gradient(function, logits, *arguments, grad_output=None, **options):
    """The loss and its gradient with respect to a copy of the logits with the same memory layout."""
    logits = logits.detach().requires_grad_()
    loss = function(logits, *arguments, **options)
    if grad_output is None:
        grad_output = torch.ones_like(loss) if loss.dim() == 0 else torch.linspace(0.5, 2, loss.numel())
    (gradient,) = torch.autograd.grad(loss, logits, grad_output.to(loss.dtype).reshape(loss.shape))
    return loss.detach(), gradient


def detached(sample):
    """The arguments of a sample of PyTorch, those but the logits without a gradient."""
    arguments = [argument.detach() if torch.is_tensor(argument) else argument for argument in sample.args]
    return sample.input, arguments, sample.kwargs


# --- PyTorch's own samples ---


def samples(name, dtype, **options):
    (operator,) = [operator for operator in op_db if operator.name == f"nn.functional.{name}"]
    found = list(operator.sample_inputs("cpu", dtype, requires_grad=True, **options))
    assert len(found) > 20
    return found


functions = pytest.mark.parametrize("name", FUNCTIONS)


@functions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_samples_of_operators(name, dtype, calls):
    for sample in samples(name, dtype):
        logits, arguments, options = detached(sample)
        expected = value_and_gradient(getattr(functional, name), logits, *arguments, **options)
        calls.clear()
        found = value_and_gradient(FUNCTIONS[name], logits, *arguments, **options)
        assert calls, "PyTorch computed it"
        assert_close(found, expected, **CLOSE[dtype], equal_nan=True)


@functions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_samples_of_16_bits_are_those_of_64_rounded(name, dtype):
    """PyTorch rounds between its steps, so its own results in 16 bits are no measure."""
    for sample in samples(name, dtype):
        logits, arguments, options = detached(sample)
        wide = [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
        wide_options = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
        expected = value_and_gradient(getattr(functional, name), logits.double(), *wide, **wide_options)
        found = value_and_gradient(FUNCTIONS[name], logits, *arguments, **options)
        assert [result.dtype for result in found] == [dtype, dtype]
        assert_close(found, expected, check_dtype=False, **CLOSE[dtype], equal_nan=True)


@functions
def test_samples_with_gradients_of_targets_too(name, calls):
    """Those that need one, which the kernels have for probabilities."""
    checked = 0
    for sample in samples(name, torch.float64):
        target = sample.args[0]
        if not target.requires_grad:
            continue
        gradients = []
        for function in (FUNCTIONS[name], getattr(functional, name)):
            loss = function(sample.input, target, **sample.kwargs)
            gradients.append(torch.autograd.grad(loss.sum(), (sample.input, target)))
        assert_close(*gradients, equal_nan=True)
        checked += 1
    assert checked > 8
    assert calls.count("cross_entropy_target_grad") == (checked if name == "cross_entropy" else 0)


@functions
def test_derivatives_of_samples(name):
    """First and second ones against differences."""
    for sample in samples(name, torch.float64):
        logits, arguments, options = detached(sample)
        if logits.numel() > 30:
            continue
        function = functools.partial(FUNCTIONS[name], target=arguments[0], **options)
        assert torch.autograd.gradcheck(function, logits)
        assert torch.autograd.gradgradcheck(function, logits)


def modules_of_pytorch(name):
    (info,) = [info for info in module_db if info.module_cls is getattr(torch.nn, name)]
    return info


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_samples_of_modules(name, dtype):
    info = modules_of_pytorch(name)
    found = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert len(found) > 5
    for sample in found:
        module = MODULES[name](*sample.constructor_input.args, **sample.constructor_input.kwargs)
        arguments = [
            argument.detach().requires_grad_(number == 0)
            for number, argument in enumerate(sample.forward_input.args)
        ]
        result = module(*arguments)
        expected = sample.reference_fn(module, *[argument.detach() for argument in arguments])
        assert_close(result, expected, **CLOSE[dtype], equal_nan=True, msg=sample.desc)


def test_errors_of_modules_are_those_of_pytorch():
    info = modules_of_pytorch("CrossEntropyLoss")
    if info.module_error_inputs_func is None:
        pytest.skip("this version of PyTorch has no samples of errors")
    found = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    )
    assert len(found) > 6
    for error in found:
        constructor, forward = (
            error.module_error_input.constructor_input,
            error.module_error_input.forward_input,
        )
        module = xt.CrossEntropyLoss(*constructor.args, **constructor.kwargs)
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*forward.args, **forward.kwargs)


# --- Operators ---

DIVERGENCES = [("forward", 0.5), ("reverse", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1)]


#: No label smoothing, with which they do not go, and the terms that look at the probability of a class.
FOCUS = (0.0, 2.0, -0.7)


def operator_cases(dtype):
    logits, target = problem(dtype=dtype)
    logits = logits.detach()
    weight, rows = torch.rand(5), torch.rand(6)
    probabilities = logits.softmax(1)
    three = torch.tensor(3.0)
    for reduction in ("mean", "sum", "none"):
        denominator = three if reduction == "mean" else None
        for targets, focus in ((target, (0.1, 0.0, 0.0)), (target, FOCUS), (probabilities, (0.1, 0.0, 0.0))):
            tensors = (logits, targets, weight.to(dtype), rows.to(dtype), denominator)
            label_smoothing, *terms = focus
            numbers = (-100, label_smoothing, 0.01, 20.0, 1.5, *terms, reduction, dtype)
            yield "cross_entropy", tensors, numbers
        for gamma in (0.0, 1.5):
            tensors = (logits, probabilities, weight.to(dtype), weight.to(dtype), denominator)
            yield "binary_cross_entropy", tensors, (None, 0.1, gamma, reduction, dtype)
        tensors = (logits, 2 * logits, rows.to(dtype), denominator)
        for kind, beta in DIVERGENCES:
            yield "kl_divergence", tensors, (kind, beta, 2.0, reduction, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_hold_what_pytorch_expects_of_operators(dtype):
    """Schema, autograd registration, results without data, and compiled."""
    for name, tensors, numbers in operator_cases(dtype):
        operators = torch.ops.xent_rs
        loss = getattr(operators, name)(*tensors, *numbers)
        torch.library.opcheck(getattr(operators, name).default, (*tensors, *numbers))
        for grad_output in (None, torch.ones_like(loss)):
            arguments = (grad_output, *tensors, *numbers)
            torch.library.opcheck(getattr(operators, f"{name}_with_grad").default, arguments)
            if name == "binary_cross_entropy":
                continue
            # What further derivatives do not know: a softcap, focal and poly terms, other divergences.
            if name == "cross_entropy":
                numbers = (*numbers[:3], None, numbers[4], 0.0, 0.0, *numbers[7:])
            else:
                numbers = ("forward", 0.5, *numbers[2:])
            arguments = (grad_output, *tensors, *numbers)
            torch.library.opcheck(getattr(operators, f"{name}_hvp").default, (tensors[0].cos(), *arguments))
            if name == "cross_entropy" and tensors[1].is_floating_point():
                torch.library.opcheck(operators.cross_entropy_target_grad.default, arguments)


def test_an_operator_without_its_function_says_that_it_has_no_derivative():
    logits, target = problem()
    loss = torch.ops.xent_rs.cross_entropy(
        logits, target, None, None, None, -100, 0.0, 0.0, None, 1.0, 0.0, 0.0, "mean", torch.float64
    )
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        loss.backward()


# --- Compilers ---


def losses_to_compile():
    teacher = torch.randn(6, 5)
    probabilities = torch.rand(6, 5)
    return {
        "classes": lambda x, y: xt.cross_entropy(2 * x, y, label_smoothing=0.1),
        "each row": lambda x, y: (xt.cross_entropy(2 * x, y, reduction="none") * x[:, 0]).sum(),
        "options": lambda x, y: xt.cross_entropy(x.tanh(), y, z_loss=1e-2, softcap=5.0, denominator=7),
        "focal": lambda x, y: xt.cross_entropy(2 * x, y, focal_gamma=2.0, poly_epsilon=0.5),
        "focal, binary": lambda x, y: xt.binary_cross_entropy_with_logits(
            2 * x, probabilities, focal_gamma=1.5
        ),
        "probabilities": lambda x, y: xt.cross_entropy(2 * x, probabilities, weight=probabilities[0]),
        "learned probabilities": lambda x, y: xt.cross_entropy(2 * x, x.softmax(1), reduction="sum"),
        "binary": lambda x, y: xt.binary_cross_entropy_with_logits(2 * x, probabilities, label_smoothing=0.1),
        "divergence": lambda x, y: xt.kl_divergence(2 * x, teacher, temperature=2.0),
        "mixture": lambda x, y: xt.kl_divergence(2 * x, teacher, kind="jensen_shannon", beta=0.9),
        "module": lambda x, y: xt.CrossEntropyLoss(ignore_index=1)(2 * x, y),
        "autocast": under_autocast,
    }


def under_autocast(x, y):
    with torch.autocast("cpu", torch.bfloat16):
        return xt.cross_entropy(2 * x, y)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend):
    logits, target = problem(dtype=torch.float32)
    for name, loss in losses_to_compile().items():
        torch._dynamo.reset()
        compiled = torch.compile(loss, backend=backend, fullgraph=True)
        expected = value_and_gradient(loss, logits, target)
        found = value_and_gradient(compiled, logits, target)
        assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_compiled_forward_and_backward_have_one_operator_each():
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph)

    logits, target = problem(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: xt.cross_entropy(x, y),
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
        fullgraph=True,
    )
    value_and_gradient(compiled, logits, target)
    ours = [[name for name in graph if "xent_rs" in name] for graph in graphs]
    assert ours == [["xent_rs.cross_entropy.default"], ["xent_rs.cross_entropy_with_grad.default"]]
    assert not any("softmax" in name for graph in graphs for name in graph)


def test_transforms_are_compiled():
    logits, target = problem()
    logits = logits.detach()
    torch._dynamo.reset()

    def gradient(cross_entropy):
        return torch.func.grad(lambda x: cross_entropy(x, target, label_smoothing=0.1))

    compiled = torch.compile(gradient(xt.cross_entropy), backend="aot_eager", fullgraph=True)
    assert_close(compiled(logits), gradient(functional.cross_entropy)(logits))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_backward_pass_alone_is_compiled():
    logits, target = problem()
    _, expected = value_and_gradient(functional.cross_entropy, logits, target)
    torch._dynamo.reset()
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        xt.cross_entropy(logits * 1, target).backward()
    assert_close(logits.grad, expected)


def test_one_compiled_graph_serves_all_batch_sizes_and_denominators():
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(xt.cross_entropy, backend=keep, fullgraph=True, dynamic=True)
    for rows in (3, 5, 11):
        logits, target = problem(rows)
        tokens = torch.tensor(2 * rows)
        found = value_and_gradient(compiled, logits, target, denominator=tokens)
        assert_close(found, value_and_gradient(xt.cross_entropy, logits, target, denominator=tokens))
    assert len(graphs) == 1


def test_export_is_of_pytorchs_own_function_and_has_gradients():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 5)

        def forward(self, x, y):
            return xt.cross_entropy(self.linear(x), y)

    model, x, y = Model(), torch.randn(6, 4), torch.randint(0, 5, (6,))
    # PyTorch 2.7 does not say in time that this is an export.
    for strict in (False, True) if VERSION >= (2, 15) else (False,):
        program = torch.export.export(model, (x, y), strict=strict)
        assert not any("xent_rs" in str(node.target) for node in program.graph.nodes)
        exported = program.module()
        assert_close(exported(x, y), model(x, y))
        exported(x, y).backward()
        assert exported.linear.weight.grad.abs().sum() > 0


# --- Gradients ---


def plain(logits, target):
    return xt.cross_entropy(logits, target)


def test_the_gradient_of_a_mean_is_computed_along_with_it(calls):
    logits, target = problem()
    expected = value_and_gradient(functional.cross_entropy, logits, target)
    assert_close(value_and_gradient(plain, logits, target), expected)
    assert calls == ["cross_entropy_with_grad"]


@pytest.mark.parametrize("grad_output", [0.25, -3.0, 0.0])
def test_another_grad_output_is_a_factor_of_the_gradient(grad_output, calls):
    logits, target = problem()
    grad_output = torch.tensor(grad_output)
    expected = value_and_gradient(functional.cross_entropy, logits, target, grad_output=grad_output)
    assert_close(value_and_gradient(plain, logits, target, grad_output=grad_output), expected, equal_nan=True)
    assert calls == ["cross_entropy_with_grad"] * 2


def test_without_a_gradient_there_is_the_loss_alone(calls):
    logits, target = problem()
    with torch.no_grad():
        plain(logits, target)
    plain(logits.detach(), target)
    with torch.inference_mode():
        plain(logits, target)
    assert calls == ["cross_entropy"] * 3


@pytest.mark.parametrize("between", ["nothing", "gradient written over", "gradient scaled"])
def test_a_graph_that_is_kept_gives_the_same_gradient_again(between):
    logits, target = problem()
    hidden = logits * 1
    loss = plain(hidden, target)
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    expected = first.clone()
    if between == "gradient written over":
        first.zero_()
    elif between == "gradient scaled":
        hidden.register_hook(lambda gradient: 2 * gradient)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    assert_close(once, expected * (2 if between == "gradient scaled" else 1))
    logits.grad.zero_()
    loss.backward()
    assert_close(logits.grad, once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_gradient_of_a_leaf_is_its_own():
    """What an optimizer does to it changes nothing for the second backward pass."""
    logits, target = problem()
    loss = plain(logits, target)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    logits.grad.zero_()
    loss.backward()
    assert_close(logits.grad, once)


def test_a_loss_is_scaled_in_place():
    logits, target = problem()
    loss = plain(logits, target)
    loss *= 3
    loss.backward()
    _, expected = value_and_gradient(functional.cross_entropy, logits, target)
    assert_close(logits.grad, 3 * expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives_by_the_batch(reduction):
    logits, target = problem(4, 3)
    results = []
    for cross_entropy in (xt.cross_entropy, functional.cross_entropy):
        loss = cross_entropy(logits, target, reduction=reduction)
        directions = torch.stack([torch.ones_like(loss), torch.full_like(loss, 2)])
        (batch,) = torch.autograd.grad(loss, logits, directions, is_grads_batched=True)
        loss = functools.partial(cross_entropy, target=target, reduction=reduction)
        jacobian = torch.autograd.functional.jacobian(loss, logits, vectorize=True)
        vjp = torch.func.vmap(
            lambda direction: torch.autograd.grad(loss(logits), logits, direction)[0]  # noqa: B023
        )
        results.append((batch, jacobian, vjp(directions)))
    assert_close(*results)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_that_change_before_the_backward_pass_are_noticed(reduction):
    logits, target = problem()
    hidden = logits * 1
    loss = xt.cross_entropy(hidden, target, reduction=reduction).sum()
    with torch.no_grad():
        hidden.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_of_the_callers_is_written_to():
    for name, tensors, numbers in operator_cases(torch.float32):
        before = [tensor.clone() if tensor is not None else None for tensor in tensors]
        getattr(torch.ops.xent_rs, f"{name}_with_grad")(None, *tensors, *numbers)
        for tensor, copied in zip(tensors, before, strict=True):
            assert tensor is None or torch.equal(tensor, copied)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_keeps_no_gradient(reentrant):
    logits, target = problem(64, 100)
    _, expected = value_and_gradient(functional.cross_entropy, logits, target)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.utils.checkpoint.checkpoint(plain, logits, target, use_reentrant=reentrant)
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, np.ndarray)]
    assert any(tensor is logits for tensor in alive)
    for tensor in [*kept, *alive]:
        assert tensor.shape != logits.shape or tensor is logits or tensor is expected
    loss.backward()
    assert_close(logits.grad, expected)


def test_second_derivatives_of_all_losses_with_all_options():
    for name, tensors, numbers in operator_cases(torch.float64):
        logits, targets, *rest = tensors
        logits = logits[:3, :4].clone().requires_grad_()
        if name == "kl_divergence":
            function = functools.partial(
                xt.kl_divergence,
                target_logits=targets[:3, :4],
                kind=numbers[0],
                beta=numbers[1],
                temperature=2.0,
                sample_weight=rest[0][:3],
            )
        elif name == "binary_cross_entropy":
            function = functools.partial(
                xt.binary_cross_entropy_with_logits,
                target=targets[:3, :4],
                weight=rest[0][:4],
                label_smoothing=0.1,
                focal_gamma=numbers[2],
                denominator=rest[2],
            )
        else:
            targets = targets[:3].clamp(max=3) if targets.dim() == 1 else targets[:3, :4]
            function = functools.partial(
                xt.cross_entropy,
                target=targets,
                weight=rest[0][:4],
                sample_weight=rest[1][:3],
                label_smoothing=numbers[1],
                z_loss=0.01,
                softcap=20.0,
                temperature=1.5,
                focal_gamma=numbers[5],
                poly_epsilon=numbers[6],
                denominator=rest[2],
            )
        reduction = next(number for number in numbers if number in ("mean", "sum", "none"))
        function = functools.partial(function, reduction=reduction)
        assert torch.autograd.gradcheck(function, logits)
        assert torch.autograd.gradgradcheck(function, logits)


# --- Options ---

OPTIONS = {
    "targets": ["classes", "narrow classes", "probabilities"],
    "shape": [(), (7,), (4, 3), (2, 3, 2)],
    "weight": [False, True],
    "sample_weight": [None, "some 0", "all 0"],
    "ignore_index": [-100, 2],
    "label_smoothing": [0.0, 0.2],
    "z_loss": [0.0, 0.05],
    "softcap": [None, 4.0],
    "temperature": [1.0, 0.7],
    "focal_gamma": [0.0, 2.0, 0.5],
    "poly_epsilon": [0.0, 1.0, -0.7],
    "reduction": ["mean", "sum", "none", "denominator", "denominator 0"],
}
COVER = pairwise(OPTIONS)


def tensors_of(case, dtype=torch.float64):
    """Logits with the classes along dimension 1, targets and options."""
    first, rest = case["shape"][:1], case["shape"][1:]
    classes, rows = 5, case["shape"]
    logits = (3 * torch.randn(*first, classes, *rest)).to(dtype)
    if case["targets"] == "probabilities":
        target = logits.roll(1, -1).softmax(min(1, logits.dim() - 1))
        case = {**case, "ignore_index": -100, "focal_gamma": 0.0, "poly_epsilon": 0.0}
    else:
        target = torch.randint(0, classes, rows)
        target = target.to(torch.int16) if case["targets"] == "narrow classes" else target
    if case["focal_gamma"] or case["poly_epsilon"]:
        case = {**case, "label_smoothing": 0.0}
    others = ("targets", "shape", "weight", "sample_weight", "reduction")
    options = {name: value for name, value in case.items() if name not in others}
    if case["weight"]:
        options["weight"] = torch.rand(classes, dtype=torch.float64)
    if case["sample_weight"] is not None:
        weights = torch.rand(rows)
        weights = torch.where(weights < 0.3, 0, weights) if case["sample_weight"] == "some 0" else 0 * weights
        options["sample_weight"] = weights
        logits.movedim(min(1, logits.dim() - 1), -1)[weights == 0] = math.nan
    options["reduction"] = case["reduction"].split()[0]
    if options["reduction"] == "denominator":
        options["reduction"] = "mean"
        options["denominator"] = 0 if case["reduction"] == "denominator 0" else 11
    return logits, target, options


def of_arrays(function, logits, targets, options, grad_output):
    """The same by the function for arrays."""
    arrays = {name: value.numpy() if torch.is_tensor(value) else value for name, value in options.items()}
    loss, gradient = function(
        logits.numpy(), targets.numpy(), **arrays, axis=min(1, logits.dim() - 1), grad_output=grad_output
    )
    return torch.as_tensor(np.asarray(loss, np.float64)), torch.from_numpy(gradient)


@pytest.mark.parametrize("case", COVER, ids=lambda case: ", ".join(map(str, case.values())))
def test_options_are_those_of_the_functions_for_arrays(case):
    logits, target, options = tensors_of(case)
    grad_output = torch.rand(case["shape"] if options["reduction"] == "none" else (), dtype=torch.float64)
    expected = of_arrays(
        xent_rs.cross_entropy_with_grad, logits, target, options, np.asarray(grad_output.numpy())
    )
    found = value_and_gradient(xt.cross_entropy, logits, target, **options, grad_output=grad_output)
    assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", COVER, ids=lambda case: ", ".join(map(str, case.values())))
def test_pytorch_computes_the_same_with_options(case, calls):
    """Where the kernels do not reach: a gradient of a weight is wanted."""
    logits, target, options = tensors_of(case)
    expected = value_and_gradient(xt.cross_entropy, logits, target, **options)
    calls.clear()
    # Only what is multiplied outside of PyTorch's own function has such a gradient.
    options["sample_weight"] = options.get("sample_weight", torch.ones(case["shape"])).requires_grad_()
    found = value_and_gradient(xt.cross_entropy, logits, target, **options)
    assert not calls
    assert_close(found, expected, **CLOSE[torch.float64], equal_nan=True)


def test_a_masked_class_stays_masked_under_a_softcap(calls):
    logits = torch.tensor([[1.0, -math.inf, 2.0], [0.0, 1.0, -math.inf]], dtype=torch.float64)
    options = {"target": torch.tensor([0, 1]), "softcap": 3.0}
    expected = value_and_gradient(xt.cross_entropy, logits, **options)
    assert expected[1][0, 1] == expected[1][1, 2] == 0
    calls.clear()
    learned = torch.ones(2, requires_grad=True)
    assert_close(value_and_gradient(xt.cross_entropy, logits, **options, sample_weight=learned), expected)
    assert not calls


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_ends_of_confidence_of_a_focal_loss(gamma, calls):
    """Rows whose class is certain, and impossible, and a row of NaN."""
    rows = [[0, 900, 0], [0, -900, 0], [0, -math.inf, 0], [math.nan, 0, 0], [-30, 0, 1]]
    logits, target = torch.tensor(rows, dtype=torch.float64), torch.tensor([1, 1, 1, 1, 2])
    options = {"focal_gamma": gamma, "poly_epsilon": 0.5, "reduction": "none"}
    yes = torch.tensor([[1.0, 0, 1], [0.5, 1, 1], [0, 1, 0], [1, 1, 0.25], [0, 1, 1]], dtype=torch.float64)
    binary = {"focal_gamma": gamma, "reduction": "none"}
    finite = torch.where(logits == -math.inf, -900, logits)  # of others PyTorch's own binary loss is NaN
    by_kernels = [
        value_and_gradient(xt.cross_entropy, logits, target, **options),
        value_and_gradient(xt.binary_cross_entropy_with_logits, finite, yes, **binary),
    ]
    assert calls
    calls.clear()
    learned = torch.ones(5, requires_grad=True)
    by_pytorch = [
        value_and_gradient(xt.cross_entropy, logits, target, **options, sample_weight=learned),
        value_and_gradient(xt.binary_cross_entropy_with_logits, finite, yes.requires_grad_(), **binary),
    ]
    assert not calls
    assert_close(by_pytorch, by_kernels, equal_nan=True)


def test_what_is_left_of_a_confident_row_has_its_digits():
    """In float32, where 1 - p of the class is 0 if it is computed so."""
    logits, target = torch.tensor([[17.0, 0.0]]), torch.tensor([0])
    p = 1 / (1 + math.exp(17))
    for options, factor in (({"focal_gamma": 2.0}, p**2), ({"poly_epsilon": 1.0}, 2)):
        loss, gradient = value_and_gradient(xt.cross_entropy, logits, target, **options)
        assert loss.item() == pytest.approx(p * factor, rel=1e-6)
        assert gradient[0, 1].item() == pytest.approx(p * factor * (3 if factor < 1 else 1), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
def test_weights_of_another_dtype(dtype):
    logits, target = problem(dtype=torch.float32)
    weight = torch.tensor([1, 2, 0, 3, 4])
    gradients = []
    for weights in (weight.to(dtype), weight.float()):
        (first,) = torch.autograd.grad(xt.cross_entropy(logits, target, weights), logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), logits)
        gradients.append((first.detach(), second))
    assert_close(*gradients)
    weights = torch.rand(5)
    yes = logits.detach().sigmoid()
    expected = value_and_gradient(xt.binary_cross_entropy_with_logits, logits, yes, weights)
    assert_close(
        value_and_gradient(xt.binary_cross_entropy_with_logits, logits, yes, weights.double()), expected
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_divergence_is_that_of_the_function_for_arrays_and_of_pytorch(
    kind, beta, axis, reduction, weighted, calls
):
    model, teacher = torch.randn(4, 5, 6, dtype=torch.float64), torch.randn(4, 5, 6, dtype=torch.float64)
    options = {"kind": kind, "beta": beta, "axis": axis, "reduction": reduction, "temperature": 1.5}
    if weighted:
        shape = model.select(axis, 0).shape
        options["sample_weight"] = torch.randint(0, 3, shape)
    arrays = {name: value.numpy() if torch.is_tensor(value) else value for name, value in options.items()}
    losses, expected = xent_rs.kl_divergence_with_grad(model.numpy(), teacher.numpy(), **arrays)
    model.requires_grad_()
    found = xt.kl_divergence(model, teacher, **options)
    assert calls == ["kl_divergence" if reduction == "none" else "kl_divergence_with_grad"]
    found.sum().backward()
    assert_close(found.detach(), torch.as_tensor(losses, dtype=torch.float64), rtol=1e-15, atol=1e-15)
    assert_close(model.grad, torch.from_numpy(expected), rtol=1e-14, atol=1e-16)
    calls.clear()
    model.grad = None
    by_pytorch = xt.kl_divergence(model, teacher.requires_grad_(), **options)
    by_pytorch.sum().backward()
    assert not calls
    assert teacher.grad.abs().sum() > 0
    assert_close(by_pytorch, found, **CLOSE[torch.float64])
    assert_close(model.grad, torch.from_numpy(expected), **CLOSE[torch.float64])


def test_divergence_of_one_row_and_of_masked_classes():
    model = torch.tensor([1.0, 2.0, -math.inf, -math.inf], requires_grad=True)
    teacher = torch.tensor([0.0, -math.inf, 1.0, -math.inf])
    assert xt.kl_divergence(model, teacher) == math.inf
    teacher[2] = -math.inf
    log_probability = model.detach().log_softmax(0)[0]
    for targets in (teacher, teacher.clone().requires_grad_()):
        found, gradient = value_and_gradient(xt.kl_divergence, model, targets)
        assert_close(found, -log_probability)
        assert_close(gradient, torch.tensor([-1.0, 1.0, 0.0, 0.0]) * (1 - log_probability.exp()))


@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_divergences_of_masked_classes_have_the_derivatives_of_the_formula(kind, beta):
    """One is masked in both, one in the model; of KL(model || teacher) none in the teacher alone."""
    model = torch.tensor([[1.0, 2.0, 0.5, -math.inf, -math.inf]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1.0, -math.inf, 1.0, -math.inf]], dtype=torch.float64)
    if kind == "reverse":
        teacher[0, 2] = 0.3
    if kind == "forward":
        teacher[0, 3] = -math.inf
    loss = functools.partial(xt.kl_divergence, kind=kind, beta=beta)
    found = value_and_gradient(loss, model, teacher)
    assert_close(found, value_and_gradient(loss, model, teacher.requires_grad_()))
    assert torch.isfinite(found[0])
    assert not found[1][0, 3:].any()


# Losses of an option, and a number that is its default.
OPTIONS_AS_TENSORS = {
    "temperature": (lambda x, y, number: xt.cross_entropy(x, y, temperature=number), 1.0),
    "z_loss": (lambda x, y, number: xt.cross_entropy(x, y, z_loss=number), 0.0),
    "softcap": (lambda x, y, number: xt.cross_entropy(x, y, softcap=number), 30.0),
    "focal_gamma": (lambda x, y, number: xt.cross_entropy(x, y, focal_gamma=number), 0.0),
    "poly_epsilon": (lambda x, y, number: xt.cross_entropy(x, y, poly_epsilon=number), 0.0),
    "temperature of a head": (lambda x, y, number: xt.linear_cross_entropy(x, x, y, temperature=number), 1.0),
    "temperature of a divergence": (
        lambda x, y, number: xt.kl_divergence(x, x.flip(1), temperature=number),
        1.0,
    ),
    "beta": (lambda x, y, number: xt.kl_divergence(x, x.flip(1), kind="jensen_shannon", beta=number), 0.5),
    "binary focal_gamma": (
        lambda x, y, number: xt.binary_cross_entropy_with_logits(x, (x > 0).double(), focal_gamma=number),
        0.0,
    ),
}


@pytest.mark.parametrize(("loss", "default"), OPTIONS_AS_TENSORS.values(), ids=OPTIONS_AS_TENSORS)
def test_an_option_that_is_learned_has_a_gradient_at_its_default(loss, default):
    x = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(5)
    learned = torch.tensor(default, dtype=torch.float64, requires_grad=True)
    assert_close(loss(x, y, learned).detach(), loss(x, y, default))
    step = 1e-6
    above, below = (loss(x, y, default + change) for change in (step, -step if default else 0.0))
    slope = (above - below) / (step * (2 if default else 1))
    (gradient,) = torch.autograd.grad(loss(x, y, learned), learned)
    assert_close(gradient, slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("loss", "default"), OPTIONS_AS_TENSORS.values(), ids=OPTIONS_AS_TENSORS)
def test_an_option_that_is_a_tensor_is_compiled_once_and_mapped(loss, default):
    x = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(5)
    numbers = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    expected = torch.stack([loss(x, y, number) for number in numbers])
    assert_close(torch.vmap(lambda number: loss(x, y, number))(numbers), expected)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_close(torch.stack([compiled(x, y, number) for number in numbers]), expected)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_no_temperature(value, as_tensor):
    value = torch.tensor(value) if as_tensor else value
    for call in (
        lambda: xt.cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), temperature=value),
        lambda: xt.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), temperature=value),
    ):
        with pytest.raises(ValueError, match="temperature is"):
            call()


def test_no_reduction():
    with pytest.raises(ValueError, match="None is not a valid value for reduction"):
        xt.cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), reduction=None)


def test_a_mixture_that_is_learned_has_a_gradient():
    logits, _ = problem()
    learned = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(beta):
        return xt.kl_divergence(logits, logits.flip(0), kind="jensen_shannon", beta=beta)

    assert_close(loss(learned), loss(0.3))
    assert torch.autograd.gradcheck(loss, learned)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, -100])
@pytest.mark.parametrize("denominator", [None, 4])
@pytest.mark.parametrize("focal_gamma", [0.0, 1.5])
def test_binary_options_are_those_of_the_function_for_arrays(
    reduction, ignore_index, denominator, focal_gamma, calls
):
    if denominator is not None and reduction != "mean":
        denominator = None
    logits = torch.randn(4, 5, dtype=torch.float64)
    targets = torch.randint(0, 2, (4, 5)).double()
    if ignore_index is not None:
        targets[0] = ignore_index
        logits[0, 0] = math.nan
    options = {"ignore_index": ignore_index, "label_smoothing": 0.2, "reduction": reduction}
    options["focal_gamma"] = focal_gamma
    options |= {"weight": torch.rand(5), "pos_weight": torch.rand(4, 1), "denominator": denominator}
    arrays = {name: value.numpy() if torch.is_tensor(value) else value for name, value in options.items()}
    losses, expected = xent_rs.binary_cross_entropy_with_grad(logits.numpy(), targets.numpy(), **arrays)
    losses = torch.as_tensor(losses, dtype=torch.float64)
    function = xt.binary_cross_entropy_with_logits
    for needs_gradient in (False, True):
        calls.clear()
        targets = targets.detach().requires_grad_(needs_gradient)
        x = logits.clone().requires_grad_()
        found = function(x, targets, **options)
        found.sum().backward()
        assert bool(calls) != needs_gradient
        assert_close(found.detach(), losses, rtol=1e-13, atol=1e-14)
        assert_close(x.grad, torch.from_numpy(expected), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("target", [torch.bool, torch.int64, torch.int8, torch.float16])
def test_binary_targets_of_other_dtypes(target):
    logits = torch.randn(4, 5)
    yes = torch.randint(0, 2, (4, 5))
    expected = value_and_gradient(functional.binary_cross_entropy_with_logits, logits, yes.float())
    found = value_and_gradient(xt.binary_cross_entropy_with_logits, logits, yes.to(target))
    assert_close(found, expected)


@pytest.mark.parametrize("target", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_class_indices_of_any_integer_dtype(target):
    logits, classes = problem()
    expected = value_and_gradient(functional.cross_entropy, logits, classes)
    assert_close(value_and_gradient(xt.cross_entropy, logits, classes.to(target)), expected)
    (second,) = torch.autograd.grad(
        torch.autograd.grad(xt.cross_entropy(logits, classes.to(target)), logits, create_graph=True)[
            0
        ].norm(),
        logits,
    )
    assert second.isfinite().all()


# --- Second derivatives, and those of targets ---


def by_pytorch(loss, *arguments, **options):
    """The same in PyTorch's operations, which a learned weight of the rows makes it go to."""
    logits = arguments[0]
    weights = options.pop("sample_weight", torch.ones(logits.select(min(1, logits.dim() - 1), 0).shape))
    return loss(*arguments, **options, sample_weight=weights.clone().requires_grad_())


def derivatives(loss, logits, targets, vector, twice=True):
    """The gradients of logits and targets, and, of logits, the derivative of its product with a vector."""
    found = loss(logits, targets)
    grad_output = (
        torch.linspace(0.5, 2, found.numel(), dtype=found.dtype).reshape(found.shape).requires_grad_()
    )
    wanted = [tensor for tensor in (logits, targets) if tensor.requires_grad]
    gradients = torch.autograd.grad(found, wanted, grad_output, create_graph=twice)
    if not twice:
        return gradients
    return *gradients, *torch.autograd.grad((gradients[0] * vector).sum(), (grad_output, logits))


SECOND = [
    case for case in COVER if (case["softcap"], case["focal_gamma"], case["poly_epsilon"]) == (None, 0, 0)
]


@pytest.mark.parametrize("case", SECOND, ids=lambda case: ", ".join(map(str, case.values())))
def test_second_derivatives_are_hessians_times_vectors(case, calls):
    logits, target, options = tensors_of(case)
    logits.requires_grad_()
    vector, ours = torch.randn_like(logits), functools.partial(xt.cross_entropy, **options)
    found = derivatives(ours, logits, target, vector)
    assert calls[-1] == "cross_entropy_hvp"
    calls.clear()
    expected = derivatives(functools.partial(by_pytorch, xt.cross_entropy, **options), logits, target, vector)
    assert not calls
    assert_close(found, expected, **CLOSE[torch.float64], equal_nan=True)


@pytest.mark.parametrize("case", SECOND, ids=lambda case: ", ".join(map(str, case.values())))
def test_gradients_of_learned_targets(case, calls):
    logits, target, options = tensors_of({**case, "targets": "probabilities"})
    target.requires_grad_()
    ours = functools.partial(xt.cross_entropy, **options)
    for logits_too in (False, True):
        logits.requires_grad_(logits_too)
        calls.clear()
        found = derivatives(ours, logits, target, None, twice=False)
        assert "cross_entropy_target_grad" in calls
        assert ("cross_entropy_with_grad" in calls) == logits_too
        calls.clear()
        expected = derivatives(
            functools.partial(by_pytorch, xt.cross_entropy, **options), logits, target, None, twice=False
        )
        assert not calls
        assert_close(found, expected, **CLOSE[torch.float64], equal_nan=True)


def test_learned_targets_of_other_dtypes():
    for dtype, other in itertools.product(DTYPES, DTYPES):
        logits = torch.randn(4, 5).to(dtype).requires_grad_()
        targets = torch.rand(4, 5).to(other).requires_grad_()
        loss = xt.cross_entropy(logits, targets)
        gradients = torch.autograd.grad(loss, (logits, targets))
        assert [gradient.dtype for gradient in gradients] == [dtype, other]
        wide = [tensor.detach().double().requires_grad_() for tensor in (logits, targets)]
        expected = torch.autograd.grad(functional.cross_entropy(*wide), wide)
        for found, exact, kind in zip(gradients, expected, (dtype, other), strict=True):
            worse = max((kind, dtype), key=lambda kind: CLOSE[kind]["rtol"])
            assert_close(found, exact, check_dtype=False, **CLOSE[worse])


def test_all_second_derivatives_of_learned_targets():
    """The mixed ones come from PyTorch's operations."""
    logits, _ = problem(3, 4)
    targets = logits.detach().roll(1).softmax(1).requires_grad_()
    for reduction in ("mean", "none"):
        loss = functools.partial(xt.cross_entropy, label_smoothing=0.1, z_loss=0.01, reduction=reduction)
        assert torch.autograd.gradcheck(loss, (logits, targets))
        assert torch.autograd.gradgradcheck(loss, (logits, targets))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_third_derivatives(reduction):
    logits, target = problem(2, 3)
    teacher = torch.randn_like(logits)
    for loss in (
        functools.partial(xt.cross_entropy, target=target, z_loss=0.01, reduction=reduction),
        functools.partial(xt.kl_divergence, target_logits=teacher, temperature=2.0, reduction=reduction),
    ):

        def gradient(x, loss=loss):
            return torch.autograd.grad(loss(x).sum(), x, create_graph=True)[0]

        assert torch.autograd.gradcheck(gradient, logits)
        assert torch.autograd.gradgradcheck(gradient, logits)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_second_derivatives_of_the_divergence(axis, reduction, calls):
    model = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    teacher, vector = torch.randn_like(model), torch.randn_like(model)
    weights = torch.rand(model.select(axis, 0).shape, dtype=torch.float64)
    options = {"axis": axis, "reduction": reduction, "temperature": 1.5}
    found = derivatives(
        functools.partial(xt.kl_divergence, **options, sample_weight=weights), model, teacher, vector
    )
    assert calls[-1] == "kl_divergence_hvp"
    calls.clear()
    options["sample_weight"] = weights.requires_grad_()
    expected = derivatives(functools.partial(xt.kl_divergence, **options), model, teacher, vector)
    assert not calls
    assert_close(found, expected, **CLOSE[torch.float64])


def test_hessians_of_pytorch(calls):
    logits, target = problem(3, 4)
    loss = functools.partial(xt.cross_entropy, target=target, label_smoothing=0.1)
    expected = torch.autograd.functional.hessian(
        functools.partial(functional.cross_entropy, target=target, label_smoothing=0.1), logits
    )
    for vectorize in (False, True):
        assert_close(torch.autograd.functional.hessian(loss, logits, vectorize=vectorize), expected)
    vector = torch.randn_like(logits)
    calls.clear()
    _, product = torch.autograd.functional.vhp(loss, logits, vector)
    assert calls[-1] == "cross_entropy_hvp"
    assert_close(product, torch.einsum("ijkl,kl->ij", expected, vector))
    # That one has a derivative by the vector, too.
    _, product = torch.autograd.functional.hvp(loss, logits, vector)
    assert_close(product, torch.einsum("ijkl,kl->ij", expected, vector))


# --- What the mean is of ---


def test_means_are_those_of_pytorch():
    logits, target = problem(7, 5)
    weight = torch.rand(5, dtype=torch.float64)
    target[:2] = -100
    probabilities = torch.rand(7, 5, dtype=torch.float64)
    for options in itertools.product((0.0, 0.3), (None, weight), (target, probabilities)):
        smoothing, weights, targets = options
        given = {"label_smoothing": smoothing, "weight": weights}
        expected = value_and_gradient(functional.cross_entropy, logits, targets, **given)
        assert_close(value_and_gradient(xt.cross_entropy, logits, targets, **given), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("which", ["no rows", "all ignored", "no classes", "weights 0"])
def test_nothing_that_counts(reduction, which):
    logits, target = problem(3, 4)
    options = {"reduction": reduction}
    if which == "no rows":
        logits, target = logits[:0], target[:0]
    elif which == "all ignored":
        target[:] = -100
    elif which == "no classes":
        logits, target = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
    else:
        options["weight"] = torch.zeros(4, dtype=torch.float64)
    loss = xt.cross_entropy(logits, target, **options)
    assert_close(loss, functional.cross_entropy(logits, target, **options), equal_nan=True)
    assert loss.isnan() if reduction == "mean" else not loss.isnan().any()
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        # PyTorch has NaN here, which ends a training.
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_of_other_losses(reduction):
    logits = torch.zeros(0, 3, requires_grad=True)
    for function in (xt.binary_cross_entropy_with_logits, xt.kl_divergence):
        for targets in (torch.zeros(0, 3), torch.zeros(0, 3, requires_grad=True)):
            loss = function(logits, targets, reduction=reduction)
            binary = function is xt.binary_cross_entropy_with_logits
            assert loss.shape == (() if reduction != "none" else (0, 3) if binary else (0,))
            assert loss.isnan() if reduction == "mean" else loss.sum() == 0
            assert torch.autograd.grad(loss.sum(), logits)[0].shape == (0, 3)


def test_one_row_without_a_batch():
    logits, target = torch.randn(5, requires_grad=True), torch.tensor(2)
    for reduction in ("mean", "sum", "none"):
        expected = value_and_gradient(functional.cross_entropy, logits, target, reduction=reduction)
        assert_close(value_and_gradient(xt.cross_entropy, logits, target, reduction=reduction), expected)
    loss = xt.binary_cross_entropy_with_logits(torch.tensor(0.5), torch.tensor(1.0), reduction="none")
    assert_close(loss, torch.tensor(0.5).sigmoid().log().neg())


def test_masked_classes_and_poisoned_rows_stay_where_they_are():
    logits = torch.tensor([[1.0, -math.inf, 2.0], [math.nan, 0, 0], [0.0, 1.0, 2.0]])
    probabilities = torch.tensor([[0.5, 0.0, 0.5], [1.0, 0, 0], [0, 1.0, 0]])
    losses, gradient = value_and_gradient(xt.cross_entropy, logits, probabilities, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient[0, 1] == 0
    loss, gradient = value_and_gradient(xt.cross_entropy, logits, torch.tensor([0, -100, 1]))
    assert loss.isfinite()
    assert gradient[1].tolist() == [0, 0, 0]


# --- Layouts and dtypes ---

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "turned": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every other": lambda x: x.repeat_interleave(2, 1).repeat_interleave(3, 3)[:, ::2, :, ::3],
    "one row for all": lambda x: x[:1].expand(x.shape),
    "one class for all": lambda x: x[:, :1].expand(x.shape),
    "one place for all": lambda x: x[..., :1].expand(x.shape),
    "with an offset": lambda x: torch.cat([x, x])[x.shape[0] :],
    "negated lazily": lambda x: (
        torch.complex(x.float(), -x.float()).conj().imag.to(x.dtype)
        if x.dtype is not torch.float32
        else torch.complex(x, -x).conj().imag
    ),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_gives_the_same_and_keeps_it(layout, dtype, calls):
    logits = LAYOUTS[layout](torch.randn(2, 3, 4, 5).to(dtype))
    target = torch.randint(0, 3, (2, 4, 5))
    yes = LAYOUTS[layout](torch.rand(2, 3, 4, 5).to(dtype))
    weights = torch.rand(5, 4, 2).permute(2, 1, 0)
    for function, arguments, options in (
        (xt.cross_entropy, (target,), {"sample_weight": weights}),
        (xt.cross_entropy, (target.transpose(1, 2).contiguous().transpose(1, 2),), {"reduction": "none"}),
        (xt.cross_entropy, (yes,), {"temperature": 2.0}),
        (xt.binary_cross_entropy_with_logits, (yes,), {"weight": weights.unsqueeze(1)}),
        (xt.kl_divergence, (yes,), {"axis": 1}),
        (xt.kl_divergence, (yes,), {}),
    ):
        arranged = [argument.contiguous() for argument in arguments]
        expected = value_and_gradient(function, logits.contiguous(), *arranged, **options)
        calls.clear()
        found = value_and_gradient(function, logits, *arguments, **options)
        assert calls
        assert_close(found, expected, **CLOSE[dtype])
        assert found[1].dtype is dtype


@layouts
def test_operators_say_how_their_gradients_lie(layout):
    """Compiled code relies on it."""
    logits = LAYOUTS[layout](torch.randn(2, 3, 4, 5))
    target = torch.randint(0, 3, (2, 4, 5))
    numbers = (-100, 0.0, 0.0, None, 1.0, 0.0, 0.0, "mean", torch.float32)
    _, gradient = torch.ops.xent_rs.cross_entropy_with_grad(None, logits, target, None, None, None, *numbers)
    assert gradient.stride() == torch.empty_like(logits).stride()
    if (
        layout == "negated lazily"
    ):  # which compiled code of PyTorch takes for not negated, whatever it computes
        return
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: xt.cross_entropy(x * 1, y), backend="inductor", fullgraph=True)
    assert_close(
        value_and_gradient(compiled, logits, target),
        value_and_gradient(functional.cross_entropy, logits, target),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_read_in_place(dtype):
    from xent_rs.torch._operators import array

    tensor = torch.randn(3, 4).to(dtype).requires_grad_()
    shared = array(tensor)
    assert shared.__array_interface__["data"][0] == tensor.data_ptr()
    assert shared.astype(np.float64).tolist() == tensor.double().tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_gives_losses_of_32_bits_as_pytorch_does(dtype, reduction, calls):
    logits, target = problem(dtype=dtype)
    for function in (
        functools.partial(xt.cross_entropy, target=target),
        functools.partial(xt.kl_divergence, target_logits=logits.detach().flip(0)),
        functools.partial(xt.binary_cross_entropy_with_logits, target=logits.detach().sigmoid()),
    ):
        assert function(logits, reduction=reduction).dtype is dtype
        with torch.autocast("cpu", dtype):
            loss = function(logits, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
        exact = function(logits.double(), reduction=reduction)
        assert_close(loss, exact, check_dtype=False, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", dtype):
        assert functional.cross_entropy(logits, target).dtype is torch.float32
        (second,) = torch.autograd.grad(
            torch.autograd.grad(xt.cross_entropy(logits, target), logits, create_graph=True)[0].sum(), logits
        )
    assert second.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_floating_targets_promote_the_loss_as_in_pytorch(dtype, other):
    logits = torch.randn(4, 5).to(dtype)
    targets = torch.rand(4, 5).to(other)
    expected = functional.cross_entropy(logits, targets).dtype
    for function in (*FUNCTIONS.values(), xt.kl_divergence):
        for reduction in ("mean", "none"):
            loss, gradient = value_and_gradient(function, logits, targets, reduction=reduction)
            assert (loss.dtype, gradient.dtype) == (expected, dtype)


# --- What goes to PyTorch ---


@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")
def test_transforms_of_functions(calls):
    logits, target = problem(4, 3)
    logits = logits.detach()
    transforms = {
        "grad": lambda f: torch.func.grad(f)(logits),
        "vmap": lambda f: torch.func.vmap(f)(logits.expand(2, -1, -1)),
        "of each row": lambda f: torch.func.vmap(torch.func.grad(lambda x, y: f(x[None], y[None])))(
            logits, target
        ),
        "jacrev": lambda f: torch.func.jacrev(f)(logits),
        "jvp": lambda f: torch.func.jvp(f, (logits,), (torch.ones_like(logits),)),
        "hessian": lambda f: torch.func.hessian(f)(logits),
    }
    for name, transform in transforms.items():

        def ours(x, y=target):
            return xt.cross_entropy(x, y, label_smoothing=0.1)

        def theirs(x, y=target):
            return functional.cross_entropy(x, y, label_smoothing=0.1)

        assert_close(transform(ours), transform(theirs), msg=name)

        def with_options(x, y=target):
            return xt.cross_entropy(x, y, z_loss=0.1, softcap=5.0, denominator=3)

        def by_hand(x, y=target):
            z = 5 * torch.tanh(x / 5)
            return (functional.cross_entropy(z, y, reduction="sum") + 0.1 * (z.logsumexp(1) ** 2).sum()) / 3

        assert_close(transform(with_options), transform(by_hand), msg=name)

        def with_focus(x, y=target):
            return xt.cross_entropy(x, y, focal_gamma=2.0, poly_epsilon=0.5)

        def focus_by_hand(x, y=target):
            losses = functional.cross_entropy(x, y, reduction="none")
            missing = 1 - torch.exp(-losses)
            return (missing**2 * losses + 0.5 * missing).mean()

        assert_close(transform(with_focus), transform(focus_by_hand), msg=name)
    assert not calls


@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")
def test_forward_mode(calls):
    logits, target = problem()
    tangent = torch.randn(6, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, target), logits)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits.detach(), tangent)
        found = torch.autograd.forward_ad.unpack_dual(xt.cross_entropy(dual, target)).tangent
    assert_close(found, (gradient * tangent).sum())
    assert not calls


@functions
def test_tensors_without_data(name, calls):
    logits = torch.randn(4, 5, device="meta", requires_grad=True)
    target = torch.rand(4, 5, device="meta")
    for reduction, shape in (("mean", ()), ("none", (4,) if name == "cross_entropy" else (4, 5))):
        loss = FUNCTIONS[name](logits, target, reduction=reduction, label_smoothing=0.1)
        assert (loss.device.type, loss.shape) == ("meta", shape)
        loss.sum().backward()
    assert xt.kl_divergence(logits, logits).device.type == "meta"
    assert not calls


def test_fake_tensors(calls):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        logits = torch.randn(4, 5, requires_grad=True)
        loss = xt.cross_entropy(logits, torch.zeros(4, dtype=torch.int64), z_loss=0.1)
        loss.backward()
        assert logits.grad.shape == (4, 5)
    assert not calls


def test_subclasses_of_tensors_see_pytorchs_function():
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    logits, target = problem()
    loss = xt.cross_entropy(logits.detach().as_subclass(Watched), target)
    assert functional.cross_entropy in seen
    assert_close(loss.as_subclass(torch.Tensor), functional.cross_entropy(logits, target).detach())
    assert xt.cross_entropy(torch.nn.Parameter(logits.detach()), target).requires_grad


def test_weights_that_need_a_gradient():
    logits = torch.randn(4, 5, dtype=torch.float64)
    probabilities = torch.rand(4, 5, dtype=torch.float64)
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(function(logits, probabilities, weight=weight), weight)[0]
        for function in (xt.cross_entropy, functional.cross_entropy)
    ]
    assert_close(*gradients)
    # Nobody asks for one here.
    with torch.no_grad(), Calls() as calls:
        xt.cross_entropy(logits, probabilities, weight=weight)
    assert calls.names == ["cross_entropy"]


@pytest.mark.parametrize(
    ("options", "reduction"),
    [({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"size_average": True}, "mean")],
)
def test_deprecated_reductions(options, reduction):
    logits, target = problem()
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        loss = xt.cross_entropy(logits, target, **options)
    assert_close(loss, xt.cross_entropy(logits, target, reduction=reduction))
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        module = xt.BCEWithLogitsLoss(**options)
    assert module.reduction == reduction


def test_probabilities_below_0_are_numbers_for_pytorch():
    """Its function takes any numbers as targets, as policy gradients have them."""
    logits, _ = problem()
    advantages = torch.randn(6, 5, dtype=torch.float64)
    expected = value_and_gradient(functional.cross_entropy, logits, advantages)
    assert_close(value_and_gradient(xt.cross_entropy, logits, advantages), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_another_device_stay_there(calls):
    logits, target = problem()
    for options in ({}, {"z_loss": 0.1, "softcap": 4.0, "denominator": 5}):
        expected = value_and_gradient(xt.cross_entropy, logits, target, **options)
        calls.clear()
        loss, gradient = value_and_gradient(xt.cross_entropy, logits.cuda(), target.cuda(), **options)
        assert not calls
        assert loss.is_cuda
        assert gradient.is_cuda
        assert_close((loss.cpu(), gradient.cpu()), expected)


# --- Bad arguments ---

X, Y, YES = torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2, 3)
META = {name: tensor.to("meta") for name, tensor in (("X", X), ("Y", Y), ("YES", YES))}
ROWS = {"sample_weight": torch.ones(3)}
SMOOTHED = {"focal_gamma": 2, "label_smoothing": 0.1}
CLASS = "expected class indices, whose probability it looks at"
BAD = {
    xt.cross_entropy: [
        (X, torch.tensor([0, 5]), {}, IndexError, r"targets\[1\] is 5"),
        (X, torch.tensor([0, -1]), {}, IndexError, r"targets\[1\] is -1"),
        ([[0.0]], Y, {}, TypeError, r"^input is a list; expected a tensor$"),
        (X, [0, 1], {}, TypeError, r"^target is a list; expected a tensor$"),
        (X, Y, {"weight": [1.0]}, TypeError, r"^weight is a list; expected a tensor$"),
        (X.to(torch.complex64), Y, {}, RuntimeError, "ComplexFloat"),
        (X.long(), Y, {}, RuntimeError, "Long"),
        (X, torch.tensor([0, 1, 2]), {}, ValueError, "batch_size"),
        (X, YES, {"ignore_index": 1}, RuntimeError, "ignore_index is not supported .* ignore_index is 1"),
        (X, Y, {"reduction": "max"}, ValueError, "max is not a valid value for reduction"),
        (X, Y, {"softcap": -1.0}, ValueError, "softcap is -1.0; expected a positive"),
        (X, Y, {"z_loss": -1.0}, ValueError, "z_loss is -1.0; expected"),
        (X, Y, {"temperature": 0.0}, ValueError, "temperature is 0.0; expected a positive"),
        (X, Y, {"temperature": "hot"}, RuntimeError, "'float' for argument 'temperature'"),
        (X, Y, {"focal_gamma": -1}, ValueError, "focal_gamma is -1.0; expected a number from 0 to 1e100"),
        (X, Y, {"poly_epsilon": math.inf}, ValueError, "poly_epsilon is inf; expected a finite number"),
        (X, Y, SMOOTHED, ValueError, "focal_gamma is 2.0 with label_smoothing 0.1; expected one of them"),
        (
            X,
            YES,
            {"poly_epsilon": 1},
            ValueError,
            "poly_epsilon is 1.0 with probabilities as targets; " + CLASS,
        ),
        (X, Y, ROWS, ValueError, "sample_weight has shape"),
        (X, Y, {"denominator": 2, "reduction": "sum"}, ValueError, "denominator is given with reduction"),
        (X, Y, {"denominator": torch.ones(2)}, TypeError, "denominator"),
        (META["X"], META["Y"], {"softcap": -1.0}, ValueError, "softcap is -1.0"),
        (
            META["X"],
            META["Y"],
            {"focal_gamma": -1},
            ValueError,
            "focal_gamma is -1.0; expected a number from",
        ),
        (META["X"], META["Y"], {"poly_epsilon": math.nan}, ValueError, "poly_epsilon is nan; expected a fin"),
        (
            META["X"],
            META["Y"],
            SMOOTHED,
            ValueError,
            "focal_gamma is 2.0 with label_smoothing 0.1; expected one",
        ),
        (
            META["X"],
            META["YES"],
            {"poly_epsilon": 1},
            ValueError,
            "is 1.0 with probabilities as targets; " + CLASS,
        ),
        (META["X"], META["Y"], ROWS, ValueError, "sample_weight has shape"),
        (META["X"], META["Y"], {"denominator": 2, "reduction": "sum"}, ValueError, "denominator is given"),
        (META["X"], META["Y"], {"z_loss": 1.0, "reduction": "max"}, ValueError, "reduction is 'max'"),
    ],
    xt.binary_cross_entropy_with_logits: [
        (X, torch.zeros(2), {}, ValueError, "Target size"),
        (X, YES, {"pos_weight": 3.0}, TypeError, r"^pos_weight is a float; expected a tensor$"),
        (X, YES, {"label_smoothing": 2.0}, ValueError, "label_smoothing is 2.0"),
        (META["X"], META["YES"], {"label_smoothing": 2.0}, ValueError, "label_smoothing is 2.0"),
        (X, YES, {"focal_gamma": -1}, ValueError, "focal_gamma is -1.0; expected a number from 0 to 1e100"),
        (META["X"], META["YES"], {"focal_gamma": -1}, ValueError, "focal_gamma is -1.0; expected a number"),
    ],
    xt.kl_divergence: [
        (X, torch.zeros(2, 4), {}, ValueError, r"target_logits have shape \(2, 4\); expected \(2, 3\)"),
        (X, X, {"axis": 2}, IndexError, "out of range"),
        (X[0], X[0], {"axis": 1}, IndexError, "out of range"),
        (X[0, 0], X[0, 0], {}, ValueError, "axis"),
        (X, X, {"temperature": -1.0}, ValueError, "temperature is -1.0"),
        *(
            (logits, logits, options, ValueError, text)
            for logits in (X, META["X"])
            for options, text in (
                ({"kind": "js"}, "^kind is 'js'; expected 'forward', 'reverse' or 'jensen_shannon'$"),
                (
                    {"kind": "jensen_shannon", "beta": 1.0},
                    "^beta is 1.0; expected a number above 0 and below 1",
                ),
                (
                    {"kind": "reverse", "beta": 0.1},
                    "^beta is 0.1 with kind 'reverse'; expected kind 'jensen_",
                ),
            )
        ),
        (X, X, {"reduction": "batchmean"}, ValueError, "reduction"),
        (META["X"], META["X"], {"temperature": -1.0}, ValueError, "temperature is -1.0"),
        (META["X"], META["X"], {"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
    ],
}
CASES = [(function, *case) for function, cases in BAD.items() for case in cases]


@pytest.mark.parametrize(("function", "logits", "targets", "options", "error", "text"), CASES)
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_bad_arguments(function, logits, targets, options, error, text, needs_gradient):
    if needs_gradient and torch.is_tensor(logits) and logits.is_floating_point():
        logits = logits.clone().requires_grad_()
    with pytest.raises(error, match=text):
        function(logits, targets, **options)


@pytest.mark.parametrize("option", ["temperature", "softcap", "z_loss", "focal_gamma", "poly_epsilon"])
def test_an_option_that_is_learned_has_a_gradient(option):
    logits, target = problem()
    learned = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def loss(number):
        return xt.cross_entropy(logits, target, **{option: number})

    assert_close(loss(learned), loss(0.5))
    assert torch.autograd.gradcheck(loss, learned)
    nothing = torch.zeros((), dtype=torch.float64, requires_grad=True)
    if option in ("focal_gamma", "poly_epsilon"):  # 0 is where one begins to learn it
        (slope,) = torch.autograd.grad(loss(nothing), nothing)
        assert slope != 0
    assert torch.autograd.gradcheck(
        lambda number: xt.kl_divergence(logits, 2 * logits, temperature=number), learned
    )


# --- Modules ---


def test_modules_are_pytorchs_with_the_same_state():
    weight = torch.rand(5, dtype=torch.float64)
    ours = xt.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    assert isinstance(ours, torch.nn.CrossEntropyLoss)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    logits, target = problem()
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_close(module(logits, target), theirs(logits, target))
    binary = xt.BCEWithLogitsLoss(torch.rand(5), reduction="sum", pos_weight=torch.rand(5))
    assert list(binary.state_dict()) == ["weight", "pos_weight"]
    peer = torch.nn.BCEWithLogitsLoss(binary.weight, reduction="sum", pos_weight=binary.pos_weight)
    assert_close(
        binary(logits.float(), logits.sigmoid().float().detach()),
        peer(logits.float(), logits.sigmoid().float()),
    )


def test_modules_hand_their_options_on():
    logits, target = problem()
    options = {"z_loss": 0.1, "softcap": 3.0, "temperature": 2.0, "focal_gamma": 2.0, "poly_epsilon": 0.5}
    of_call = {"sample_weight": torch.rand(6), "denominator": 4}
    expected = xt.cross_entropy(logits, target, **options, **of_call)
    assert torch.equal(xt.CrossEntropyLoss(**options)(logits, target, **of_call), expected)
    assert not torch.equal(xt.CrossEntropyLoss()(logits, target), expected)
    assert not torch.equal(xt.CrossEntropyLoss(**{**options, "poly_epsilon": 0.0})(logits, target), expected)
    yes = (logits.detach() > 0).double()
    yes[0] = -1
    expected = xt.binary_cross_entropy_with_logits(
        logits, yes, ignore_index=-1, label_smoothing=0.2, focal_gamma=1.5, denominator=3
    )
    module = xt.BCEWithLogitsLoss(ignore_index=-1, label_smoothing=0.2, focal_gamma=1.5)
    assert torch.equal(module(logits, yes, denominator=3), expected)


def test_a_network_learns_as_with_pytorchs_loss():
    data, labels = torch.randn(60, 8), torch.randint(0, 4, (60,))
    curves = []
    for criterion in (xt.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        curve = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = criterion(model(data), labels)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.5 * curves[0][0]
    np.testing.assert_allclose(*curves, rtol=1e-3)


# --- For the Trainer of transformers: test_torch_trainer.py has the Trainer itself ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [None, 11, torch.tensor(11)])
def test_a_loss_of_a_causal_language_model(dtype, tokens, calls):
    logits = torch.randn(2, 7, 9).to(dtype)
    labels = torch.randint(0, 9, (2, 7))
    labels[0, :3] = -100

    def by_hand(logits):
        following = functional.cross_entropy(
            logits[:, :-1].reshape(-1, 9).float(),
            labels[:, 1:].reshape(-1),
            reduction="mean" if tokens is None else "sum",
        )
        return following if tokens is None else following / tokens

    expected = value_and_gradient(by_hand, logits)
    for outputs in (lambda logits: {"logits": logits}, lambda logits: (logits, None)):
        calls.clear()

        def ours(logits, outputs=outputs):
            return xt.causal_lm_loss(outputs(logits), labels, num_items_in_batch=tokens)

        found = value_and_gradient(ours, logits)
        assert calls == ["cross_entropy_with_grad"]
        assert found[0].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert_close(found, expected, check_dtype=False, rtol=1e-5, atol=CLOSE[dtype]["atol"])
        assert found[1].dtype is dtype
        assert not found[1][:, -1].any()
    loss = xt.causal_lm_loss({"logits": logits[0]}, labels[0])
    assert_close(loss, xt.causal_lm_loss({"logits": logits[:1]}, labels[:1]))
    with pytest.raises(TypeError, match=r"^labels is a NoneType; expected a tensor$"):
        xt.causal_lm_loss({"logits": logits}, None)


class Evaluated:
    """What transformers calls an EvalPrediction."""

    def __init__(self, predictions, label_ids):
        self.predictions, self.label_ids = predictions, label_ids


@pytest.mark.parametrize("shift", [True, False])
def test_figures_of_batches_are_those_of_all(shift):
    logits, labels = torch.randn(6, 5, 9).bfloat16(), torch.randint(0, 9, (6, 5))
    labels[2, 2:] = -100
    rows, classes = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
    expected = xent_rs.evaluate(rows, classes, top_k=(3,), label_smoothing=0.1)
    metrics = xt.EvaluatorMetrics(shift=shift, top_k=iter((3,)), label_smoothing=0.1)
    for _ in range(2):  # the second evaluation knows nothing of the first
        assert metrics(Evaluated(logits[:2], labels[:2]), compute_result=False) == {}
        assert metrics(Evaluated((logits[2:5], "past"), labels[2:5]), False) == {}
        found = metrics(Evaluated(logits[5:].float().numpy(), labels[5:].numpy()), compute_result=True)
        assert found == pytest.approx(expected.as_dict(), rel=1e-6)
    assert metrics(Evaluated(logits, labels)) == pytest.approx(expected.as_dict(), rel=1e-6)


def test_logits_of_a_classifier_are_for_their_own_labels():
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    found = xt.EvaluatorMetrics()(Evaluated(logits, labels))
    assert found == xent_rs.evaluate(logits, labels).as_dict()
    with pytest.raises(TypeError, match="Did you mean 'top_k'"):
        xt.EvaluatorMetrics(topk=3)


@pytest.mark.parametrize("setting", ["XENT_RS_NUM_THREADS", "XENT_RS_SIMD"])
def test_a_setting_without_a_meaning_is_no_matter_for_pytorch(setting):
    call = "xent_rs.torch.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))"
    finished = subprocess.run(
        [sys.executable, "-c", f"import torch, xent_rs.torch; {call}"],
        env={**os.environ, setting: "many"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert f"ValueError: {setting}" in finished.stderr.splitlines()[-1]
