"""Options in combination: covers in which every two values of all options meet, and what they are held to."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import _xent_rs

from .bounds import assert_within, mean_bound
from .test_layouts import axes_turned, byte_swapped, misaligned, read_only, reversed_along, stepped_along

NARROW = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32)]
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]

FUSED = [level for level in _xent_rs.simd_levels() if level != "portable"]
fused = pytest.mark.skipif(len(FUSED) < 2, reason="one SIMD level with fused multiply-add here")

LAYOUTS = {
    "contiguous": lambda array: array.copy(),
    "turned": axes_turned,
    "every other": stepped_along(-1, 2),
    "reversed": reversed_along(-1),
    "byte-swapped": byte_swapped,
    "misaligned": misaligned,
    "read-only": read_only,
}
#: name: (leading axes, axis of the classes); 67 rows fill the kernels whose lanes are rows, and leave some.
SHAPES = {
    "rows": ((67,), -1),
    "columns": ((67,), 0),
    "middle": ((3, 7), 1),
    "rows of rows": ((5, 4), 2),
    "one row": ((1,), -1),
    "a single sample": ((), -1),
}
#: How a result is asked for, of every function that has a gradient.
RESULTS = {
    "reduction": ["mean", "mean, denominator", "sum", "none"],
    "grad_output": [None, "number", "rows"],
    "out": ["fresh", "given", "in place", "another dtype", "every other"],
}


def pairwise(factors, seed=0):
    """Choices from {name: values} in which every two values of two names meet at least once; greedy."""
    random = np.random.default_rng(seed)
    factors = {name: list(values) for name, values in factors.items()}
    sizes = [len(values) for values in factors.values()]
    missing = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(sizes)), 2)
        for a, b in itertools.product(range(sizes[i]), range(sizes[j]))
    }
    cases = []
    while missing:
        case = dict(min(missing))
        for i in random.permutation(len(sizes)).tolist():
            if i not in case:
                scores = [
                    sum(tuple(sorted([(i, a), other])) in missing for other in case.items()) + random.random()
                    for a in range(sizes[i])
                ]
                case[i] = int(np.argmax(scores))
        missing -= set(itertools.combinations(sorted(case.items()), 2))
        cases.append({name: values[case[i]] for i, (name, values) in enumerate(factors.items())})
    return cases


def logits_of(values, shape, dtype, random):
    """Classes last; the first rows of a poisoned batch are no numbers."""
    logits = random.standard_normal(shape) * (10 if values == "wide" else 2)
    if values == "offset":
        logits += {2: 100, 4: 1e4, 8: 1e8}[dtype.itemsize]
    if values == "masked":
        logits[random.random(shape) < 0.3] = -np.inf
        logits[..., -1] = 1
    if values == "poisoned":
        rows = logits.reshape(-1, shape[-1])
        rows[::7, -1], rows[1::7, 0], rows[2::7] = np.nan, np.inf, -np.inf
    return logits.astype(dtype)


def same(first, second):
    """Of one type, shape and dtype, and equal to the bit but for what kind of NaN it is."""
    one, other = np.asarray(first), np.asarray(second)
    if type(first) is not type(second) or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    numbers = ~np.isnan(one)
    return np.array_equal(numbers, ~np.isnan(other)) and one[numbers].tobytes() == other[numbers].tobytes()


def assert_levels_agree(compute, about):
    """Those with fused multiply-add, in a list of arrays that is computed anew for each."""
    found = []
    for level in FUSED:
        _xent_rs.set_simd_level(level)
        found.append(compute())
    assert all(map(same, *found)), about


def assert_threads_agree(compute, about):
    found = []
    for threads in (1, 2, 3):
        xent_rs.set_num_threads(threads)
        found.append(compute())
    assert all(map(same, found[0], found[1])), about
    assert all(map(same, found[0], found[2])), about


def enlarged(case):
    """The case with its rows along one axis, and a number of rows that threads share."""
    shape = case["shape"] if case["shape"] in ("rows", "columns") else "rows"
    return {**case, "shape": shape}, min(300_000 // case["classes"], 40_000)


@dataclass
class Problem:
    """A call, and what should come of it. Rows are the elements where `axis` is None."""

    name: str
    logits: np.ndarray
    layout: Any
    arguments: tuple
    options: dict
    axis: int | None
    oracle: Any
    bounds: Any

    @property
    def row_shape(self):
        return self.logits.shape if self.axis is None else np.delete(self.logits.shape, self.axis)

    @property
    def keywords(self):
        return self.options if self.axis is None else {**self.options, "axis": self.axis}

    def call(self, suffix="", logits=None, **options):
        function = getattr(xent_rs, self.name + suffix)
        logits = self.layout(self.logits.copy()) if logits is None else logits
        return function(logits, *self.arguments, **self.keywords, **options)

    def rows(self, array):
        """The oracle's order of a result as large as the logits."""
        if self.axis is None:
            return array.reshape(-1)
        return np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])

    def out(self, kind, random):
        """(logits, out), both in the layout that the case asks for."""
        logits, dtype = self.layout(self.logits.copy()), self.logits.dtype
        if kind == "fresh" or (kind == "in place" and not (logits.dtype.isnative and logits.flags.writeable)):
            return logits, None
        if kind == "in place":
            return logits, logits
        if kind == "another dtype" and dtype != np.float64:
            dtype = NARROW[random.integers(3)]
        out = np.full(logits.shape, 7, dtype)
        return logits, stepped_along(-1, 2)(out) if kind == "every other" and out.ndim else out

    def results(self):
        return [
            result
            for reduction in ("none", "mean")
            for result in (self.call(reduction=reduction), *self.call("_with_grad", reduction=reduction))
        ]

    def check(self, case, random, label, suffix=""):
        """The loss, the same beside its gradient, the gradient: within the bounds, in the types promised."""
        dtype, about = self.logits.dtype, f"of {case}"
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        losses, bounds = self.oracle.losses, self.bounds.losses
        found = np.asarray(self.call(reduction="none"))
        assert (found.shape, found.dtype) == (tuple(self.row_shape), wide)
        assert_within(f"{label} loss{suffix}", found.reshape(-1), losses, bounds, dtype, about)

        reduction, *denominator = case["reduction"].split(", ")
        options = {"reduction": reduction, **({"denominator": 7.5} if denominator else {})}
        with np.errstate(invalid="ignore"):
            divisor = {"mean": 7.5 if denominator else self.oracle.divisor, "sum": 1, "none": 1}[reduction]
        loss = self.call(**options)
        if reduction == "none":
            assert same(loss, self.call(reduction="none"))
        else:
            assert type(loss) is float
            with np.errstate(invalid="ignore", divide="ignore"):
                expected = losses.sum() / divisor if divisor else np.float64("nan")
                bound = mean_bound(bounds, losses, divisor) + len(losses) * 2.0**-53 * abs(expected)
            assert_within(f"{label} {reduction}{suffix}", loss, expected, bound, dtype, about)

        scale = self.grad_output(case, reduction, options, random) / divisor if divisor else np.nan
        gradients = {}
        for kind in dict.fromkeys(("fresh", case["out"])):
            logits, out = self.out(kind, random)
            beside, grad = self.call("_with_grad", logits, **options, out=out)
            assert same(beside, loss), f"{about}: {beside} beside the gradient, {loss} alone"
            assert grad is out if out is not None else grad.dtype == dtype
            gradients[kind] = grad
            if divisor == 0:
                assert not grad.any()
                continue
            expected, bound = self.oracle.gradients * scale, self.bounds.gradients(scale)
            assert_within(
                f"{label} gradient{suffix}",
                self.rows(grad),
                expected,
                bound,
                dtype,
                f"{about} into {grad.dtype}",
            )
        first, second = gradients["fresh"], gradients[case["out"]]
        assert first.dtype != second.dtype or same(first, second), f"{about}: the place changes the gradient"

    def check_hessian(self, case, random, label, swapped):
        """The same loss and gradient, and the diagonal of the Hessian, `swapped` over the logits."""
        reduction, *denominator = case["reduction"].split(", ")
        options = {"reduction": reduction, **({"denominator": 7.5} if denominator else {})}
        divisor = {"mean": 7.5 if denominator else self.oracle.divisor, "sum": 1, "none": 1}[reduction]
        loss, grad = self.call("_with_grad", **options)
        logits, out = self.out(case["out"], random)
        hess_out = None if out is None else np.full(logits.shape, 7, out.dtype)
        if swapped and out is logits:
            out, hess_out = hess_out, out
        beside, also, hess = self.call("_with_grad_hess", logits, **options, out=out, hess_out=hess_out)
        assert same(beside, loss)
        assert also is out if out is not None else also.dtype == case["dtype"]
        assert hess is hess_out if hess_out is not None else hess.dtype == case["dtype"]
        assert also.dtype != grad.dtype or same(also, grad)
        if divisor == 0:
            assert not also.any()
            assert not hess.any()
        else:
            dtype, about = case["dtype"], f"of {case}"
            expected, bound = self.oracle.hessians / divisor, self.bounds.hessians(1 / divisor)
            assert_within(f"{label} Hessian", self.rows(hess), expected, bound, dtype, about)
            expected, bound = self.oracle.gradients / divisor, self.bounds.gradients(1 / divisor)
            assert_within(f"{label} gradient", self.rows(also), expected, bound, dtype, about)

    def grad_output(self, case, reduction, options, random):
        """Added to the options; returned for the oracle, one for each row if there are several."""
        if case["grad_output"] is None:
            return 1
        if case["grad_output"] == "number" or reduction != "none":
            options["grad_output"] = np.float32(-2.5)
            return -2.5
        rows = random.standard_normal(tuple(self.row_shape)).astype(random.choice([np.float32, np.float64]))
        options["grad_output"] = rows
        flat = rows.reshape(-1).astype(self.oracle.dtype)
        return flat if self.axis is None else flat[:, None]
