"""`xent_rs.torch.linear_cross_entropy`: PyTorch's own samples, and the grids on which others test theirs."""

import itertools
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("expecttest", reason="the samples of PyTorch need expecttest")

from torch.nn import functional  # noqa: E402
from torch.testing import assert_close  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

import xent_rs.torch as xt  # noqa: E402

from .test_torch import CLOSE, Calls, calls, seeded  # noqa: E402

__all__ = ["calls", "seeded"]  # fixtures

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

SAMPLES = [operator for operator in op_db if "linear_cross_entropy" in operator.name]
ROOT = Path(__file__).resolve().parents[2]
LINEAR = "linear_cross_entropy"
LINEAR_WITH_GRAD = "linear_cross_entropy_with_grad"


def layer(rows=6, features=4, classes=5, dtype=torch.float64, bias=True):
    """Hidden states, weights, a bias or none, and targets."""
    made = [torch.randn(rows, features), torch.randn(classes, features), torch.randn(classes)]
    hidden, weight, linear_bias = (part.to(dtype).requires_grad_() for part in made)
    return hidden, weight, linear_bias if bias else None, torch.randint(0, classes, (rows,))


def reference(hidden, linear_weight, target, *, linear_bias=None, **options):
    """The loss of all logits at once."""
    return xt.cross_entropy(functional.linear(hidden, linear_weight, linear_bias), target, **options)


def value_and_gradients(
    function, hidden, linear_weight, target, grad_output=None, linear_bias=None, **options
):
    parts = [part for part in (hidden, linear_weight, linear_bias) if part is not None]
    parts = [part.detach().requires_grad_() for part in parts]
    bias = {"linear_bias": parts[2]} if linear_bias is not None else {}
    loss = function(parts[0], parts[1], target, **bias, **options)
    grad_output = torch.ones_like(loss) if grad_output is None else grad_output
    return loss.detach(), torch.autograd.grad(loss, parts, grad_output)


# PyTorch's own samples.


@pytest.mark.skipif(not SAMPLES, reason="this PyTorch has no linear_cross_entropy")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("operator", SAMPLES, ids=lambda operator: operator.variant_test_name or "plain")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, that it computes a sample otherwise
def test_samples_of_operators(operator, dtype, calls):
    by_kernels = count = 0
    for sample in operator.sample_inputs("cpu", dtype, requires_grad=True):
        arguments = [argument.detach() for argument in sample.args]
        options = {
            name: value.detach() if torch.is_tensor(value) else value for name, value in sample.kwargs.items()
        }
        calls.clear()
        expected = value_and_gradients(
            functional.linear_cross_entropy, sample.input, *arguments, **{**options, "options": None}
        )
        found = value_and_gradients(xt.linear_cross_entropy, sample.input, *arguments, **options)
        by_kernels += bool(calls)
        count += 1
        assert_close(found, expected, equal_nan=True, **CLOSE[dtype])
    assert count > 5
    assert by_kernels > count / 3


# The grids of others: dtypes, a cap, a bias, ignored rows, reductions, and shapes that fill no block.


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("rows", "classes", "features"), [(256, 512, 128), (252, 507, 123), (600, 77, 31)])
def test_every_gradient_is_that_of_all_logits(
    rows, classes, features, dtype, bias, softcap, reduction, calls
):
    """In 16 bits that of the same numbers in float32, rounded once."""
    hidden, weight, linear_bias, target = layer(rows, features, classes, dtype, bias)
    with torch.no_grad():
        hidden[: rows // 8] = weight[target[: rows // 8]]  # confident rows
    target[torch.rand(rows) < 0.2] = -100
    options = {"reduction": reduction, "softcap": softcap, "label_smoothing": 0.1, "z_loss": 1e-3}
    grad_output = torch.linspace(-1, 2, rows) if reduction == "none" else torch.tensor(0.7)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = value_and_gradients(
        reference,
        *(part.to(wide) for part in (hidden, weight)),
        target,
        grad_output.to(wide),
        None if linear_bias is None else linear_bias.to(wide),
        **options,
    )
    calls.clear()
    found = value_and_gradients(
        xt.linear_cross_entropy, hidden, weight, target, grad_output.to(dtype), linear_bias, **options
    )
    if reduction == "none":
        assert set(calls) == {LINEAR, LINEAR_WITH_GRAD}
    else:
        assert calls == [LINEAR_WITH_GRAD], "the products are made once"
    close = (
        CLOSE[dtype] if dtype.itemsize == 2 else {name: 20 * value for name, value in CLOSE[dtype].items()}
    )
    for got, of_all in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert got.dtype == dtype
        assert_close(
            got.to(wide), of_all.to(wide), rtol=close["rtol"], atol=close["atol"] * max(1, of_all.abs().max())
        )


@pytest.mark.parametrize("which", [*itertools.product([False, True], repeat=3)][1:], ids=str)
def test_gradients_that_are_not_wanted_are_not_made(which, calls):
    hidden, weight, bias, target = layer()
    parts = [
        part.detach().requires_grad_(wanted)
        for part, wanted in zip((hidden, weight, bias), which, strict=True)
    ]
    wanted = [part for part in parts if part.requires_grad]
    for reduction in ("mean", "none"):
        given = {"linear_bias": parts[2], "reduction": reduction}
        found = torch.autograd.grad(xt.linear_cross_entropy(*parts[:2], target, **given).sum(), wanted)
        expected = torch.autograd.grad(reference(*parts[:2], target, **given).sum(), wanted)
        assert_close(found, expected)


def test_without_a_gradient_there_is_the_loss_alone(calls):
    hidden, weight, bias, target = layer()
    with torch.no_grad():
        loss = xt.linear_cross_entropy(hidden, weight, target, linear_bias=bias)
    assert calls == [LINEAR]
    assert not loss.requires_grad


def test_a_factor_of_the_loss_comes_before_the_rounding():
    """As of gradient scaling, without which gradients of float16 are 0."""
    hidden, weight, bias, target = layer(64, 8, 50, torch.float16)
    scale = 2.0**14
    with torch.no_grad():
        hidden *= 2.0**-12
    found = value_and_gradients(
        xt.linear_cross_entropy, hidden, weight, target, torch.tensor(scale).half(), bias, denominator=1e6
    )[1]
    wide = [part.detach().float() for part in (hidden, weight, bias)]
    expected = value_and_gradients(
        reference, *wide[:2], target, torch.tensor(scale), wide[2], denominator=1e6
    )[1]
    for got, of_all in zip(found, expected, strict=True):
        assert_close(got.float(), of_all, rtol=1e-3, atol=1e-7)
    assert found[1].count_nonzero() > 300


@pytest.mark.parametrize("probabilities", [False, True])
def test_any_number_of_dimensions(probabilities, calls):
    """Classes are always last: those of (batch, tokens, features) are not the tokens."""
    hidden, weight = torch.randn(2, 3, 4).double().requires_grad_(), torch.randn(5, 4).double()
    target = torch.rand(2, 3, 5).double() if probabilities else torch.randint(0, 5, (2, 3))
    losses = xt.linear_cross_entropy(hidden, weight, target, reduction="none")
    flat = reference(hidden.reshape(6, 4), weight, target.reshape(6, *target.shape[2:]), reduction="none")
    assert_close(losses, flat.reshape(2, 3))
    assert LINEAR in calls
    one = xt.linear_cross_entropy(hidden[0, 0], weight, target[0, 0])
    assert_close(one, reference(hidden[0, 0], weight, target[0, 0]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": torch.tensor([1.0, 2, 0, 1, 0.5]).double(), "ignore_index": 2},
        {"sample_weight": torch.tensor([1.0, 0, 2, 1, 3, 1]).double(), "denominator": 7.0},
        {"temperature": 0.5, "z_loss": 0.1, "reduction": "sum"},
        {"focal_gamma": 2.0, "poly_epsilon": 0.5},
        {"softcap": 2.0, "label_smoothing": 0.2, "reduction": "none"},
    ],
    ids=lambda options: "-".join(options),
)
def test_derivatives_of_derivatives(options):
    hidden, weight, bias, target = layer()

    def loss(hidden, weight, bias):
        return xt.linear_cross_entropy(hidden, weight, target, linear_bias=bias, **options)

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))
    assert torch.autograd.gradgradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_operators_hold_what_pytorch_expects_of_operators(dtype, reduction):
    hidden, weight, bias, target = layer(dtype=dtype)
    with torch.no_grad():
        tensors = hidden.detach(), weight.detach(), bias.detach(), target, None, None, None
    numbers = (-100, 0.1, 0.0, None, 1.0, 0.0, 0.0, reduction, torch.float32)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.xent_rs.linear_cross_entropy, (*tensors, *numbers), test_utils=tests)
    grad_output = torch.ones(6) if reduction == "none" else None
    torch.library.opcheck(
        torch.ops.xent_rs.linear_cross_entropy_with_grad,
        (grad_output, [True, True, True], *tensors, *numbers),
        test_utils=tests,
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(backend, reduction):
    torch.compiler.reset()

    def loss(hidden, weight, bias, target):
        return xt.linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction=reduction)

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    hidden, weight, bias, target = layer()
    parts = hidden, weight, bias
    found = torch.autograd.grad(compiled(*parts, target).sum() * 3, parts)
    expected = torch.autograd.grad(loss(*parts, target).sum() * 3, parts)
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_losses_of_32_bits(dtype):
    hidden, weight, bias, target = layer(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = xt.linear_cross_entropy(hidden, weight.float(), target, linear_bias=bias)
    assert loss.dtype == torch.float32
    loss.backward()
    assert hidden.grad.dtype == dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(reduction):
    hidden, weight, bias, target = layer()
    target[:] = -100
    loss, gradients = value_and_gradients(
        xt.linear_cross_entropy, hidden * math.nan, weight, target, None, bias, reduction=reduction
    )
    assert_close(
        loss,
        functional.cross_entropy(torch.zeros(6, 5).double(), target, reduction=reduction),
        equal_nan=True,
    )
    assert all(not gradient.any() for gradient in gradients)


def test_what_the_kernels_do_not_cover_is_pytorchs(calls):
    hidden, weight, _, target = layer()
    soft = torch.rand(6, 5).double().requires_grad_()
    xt.linear_cross_entropy(hidden, weight, soft).backward()
    assert soft.grad is not None
    temperature = torch.tensor(2.0, requires_grad=True)
    xt.linear_cross_entropy(hidden, weight, target, temperature=temperature).backward()
    assert temperature.grad is not None
    per_row = torch.func.vmap(lambda h, t: xt.linear_cross_entropy(h, weight.detach(), t))(
        hidden.detach(), target
    )
    logits = functional.linear(hidden, weight)
    assert_close(per_row, functional.cross_entropy(logits, target, reduction="none").detach())
    assert calls == []
    meta = xt.linear_cross_entropy(hidden.to("meta"), weight.to("meta"), target.to("meta"))
    assert meta.device.type == "meta"


def test_any_layout(calls):
    hidden, weight, bias, target = layer(300, 8, 40, torch.float32)
    expected = value_and_gradients(xt.linear_cross_entropy, hidden, weight, target, None, bias)
    turned = [part.detach().t().contiguous().t() for part in (hidden, weight)]
    wide = [torch.stack([part.detach()] * 2, -1)[..., 0] for part in (hidden, weight)]
    for parts in (turned, wide):
        found = value_and_gradients(xt.linear_cross_entropy, *parts, target, None, bias)
        assert_close(found, expected)
    expanded = value_and_gradients(
        xt.linear_cross_entropy, hidden[:1].expand(300, 8), weight, target[:1].expand(300)
    )
    assert_close(expanded[0], reference(hidden[:1], weight, target[:1]).detach())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"target": "labels"}, TypeError, "target is a str; expected a tensor"),
        ({"linear_bias": [1.0]}, TypeError, "linear_bias is a list; expected a tensor"),
        ({"target": torch.full((6,), 5)}, IndexError, "5"),
        ({"target": torch.zeros(5, dtype=torch.long)}, ValueError, "batch_size"),
        ({"linear_weight": torch.zeros(5, 3).double()}, RuntimeError, "shapes cannot be multiplied"),
        ({"linear_weight": torch.zeros(5, 4)}, RuntimeError, "dtype"),
        ({"reduction": "max"}, ValueError, "max is not a valid value for reduction"),
        ({"softcap": -1.0}, ValueError, "softcap is -1"),
        ({"target": torch.ones(6, 5), "ignore_index": 2}, RuntimeError, "ignore_index is not supported"),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_bad_arguments(change, error, text, needs_gradient):
    hidden, weight, _, target = layer()
    given = {"linear_weight": weight, "target": target, **change}
    with torch.set_grad_enabled(needs_gradient), pytest.raises(error, match=text):
        xt.linear_cross_entropy(hidden, given.pop("linear_weight"), given.pop("target"), **given)


def test_a_model_learns_as_with_all_logits():
    features, classes = 16, 30
    inputs, target = torch.randn(400, 8), torch.randint(0, classes, (400,))
    curves = []
    for fused in (False, True):
        torch.manual_seed(0)
        body, head = torch.nn.Linear(8, features), torch.nn.Linear(features, classes)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=0.01)
        curve = []
        for _ in range(30):
            states = body(inputs).tanh()
            if fused:
                loss = xt.linear_cross_entropy(states, head.weight, target, linear_bias=head.bias)
            else:
                loss = functional.cross_entropy(head(states), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_calls_are_seen():
    """Without this the tests above would not notice that PyTorch computes everything."""
    hidden, weight, _, target = layer()
    with Calls() as seen:
        xt.linear_cross_entropy(hidden, weight, target)
    assert seen.names == [LINEAR_WITH_GRAD]


def test_a_gradient_is_the_callers_own():
    """Also where the graph is kept for another one."""
    hidden, weight, bias, target = layer()
    loss = xt.linear_cross_entropy(hidden, weight, target, linear_bias=bias)
    parts = hidden, weight, bias
    first = torch.autograd.grad(loss, parts, retain_graph=True)
    expected = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    assert_close([*torch.autograd.grad(loss, parts, retain_graph=True)], expected)
    doubled = hidden * 1
    doubled.register_hook(lambda gradient: gradient.mul_(2))
    loss = xt.linear_cross_entropy(doubled, weight, target, linear_bias=bias)
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, hidden, retain_graph=True)
        assert_close(found, 2 * expected[0])


def test_a_head_that_is_the_embedding_too():
    found = []
    for function in (xt.linear_cross_entropy, reference):
        torch.manual_seed(0)
        embedding, target = torch.nn.Embedding(30, 8), torch.randint(0, 30, (40,))
        function(embedding(target.roll(1)).tanh(), embedding.weight, target).backward()
        found.append(embedding.weight.grad)
    assert_close(*found)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_do_not_count_are_in_no_derivative(weighted):
    hidden, weight, _, target = layer()
    with torch.no_grad():
        hidden[2] = math.nan
    options = {"sample_weight": torch.tensor([1.0, 2, 0, 1, 1, 1]).double()} if weighted else {}
    if not weighted:
        target[2] = -100
    plain = torch.autograd.grad(xt.linear_cross_entropy(hidden, weight, target, **options), (hidden, weight))
    loss = xt.linear_cross_entropy(hidden, weight, target, **options)
    again = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
    assert_close(again, plain)
    assert all(gradient.isfinite().all() for gradient in again)


def test_second_derivatives_of_mixed_dtypes_outside_of_autocast():
    hidden, weight, _, target = layer(dtype=torch.float32)
    hidden = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = xt.linear_cross_entropy(hidden, weight, target)
    found = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32]


def test_one_compiled_graph_serves_all_batch_sizes():
    torch.compiler.reset()
    compiled = torch.compile(xt.linear_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (5, 9, 300):
        hidden, weight, _, target = layer(rows)
        found = torch.autograd.grad(compiled(hidden, weight, target), (hidden, weight))
        expected = torch.autograd.grad(reference(hidden, weight, target), (hidden, weight))
        assert_close(found, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_not_that_of_all_logits():
    """Neither for a loss with gradients nor for an error of PyTorch's."""
    script = """
import torch, xent_rs.torch as xt
from benches.suites.probe import memory_above

rows, features, classes = 2000, 32, 20_000
hidden, layer = torch.randn(rows, features, requires_grad=True), torch.nn.Linear(features, classes)
target = torch.randint(0, classes, (rows,))

def step(target):
    loss = xt.linear_cross_entropy(hidden, layer.weight, target, linear_bias=layer.bias)
    loss.backward()

def mistake(target):
    try:
        step(target)
    except ValueError:
        return
    raise AssertionError("taken")

step(target)
mistake(target[1:])  # with what PyTorch loads for tensors without data
for work, argument in ((step, target), (mistake, target[1:])):
    above, _ = memory_above(lambda: work(argument))
    assert above < 60e6, f"{work.__name__}: {above:,} bytes; all logits have {4 * rows * classes:,}"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
