"""Derive the polynomials and tables of src/ and say how large their errors are.

    python scripts/polynomials.py            print each, derived afresh, with its error
    python scripts/polynomials.py --check    compare them with those in src/, and fail unless they are as good

Above such an array in src/ stands the line `scripts/polynomials.py NAME: relative error 2^-E`, by which the
check finds it. Its numbers must be the derived ones to the bit, or have an error at most `MARGIN` times as
large, and E must be that error. An unknown name fails, and so does a number with many digits and no line.

Errors are relative to the function that is made of the polynomial, and the check prints four: of the numbers
in src/ and of the derived ones, in exact arithmetic; of the best polynomial of the degree, whose coefficients
are not rounded; and of the whole as the kernel computes it. The unit u is 2^-24 for f32 and 2^-53 for f64.

Needs mpmath.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpmath import mp, mpf

ROOT = Path(__file__).resolve().parent.parent
TAG = re.compile(r"scripts/polynomials\.py (\w+): relative error 2\^-(\d+\.\d+)")
ARRAY = re.compile(r"\[((?:[-\d._e,\s]|std::f64::consts::SQRT_2)+)\]")
LITERAL = re.compile(r"(?<![\w.])\d[\d_]*\.[\d_]+(?:e-?\d+)?")
MARGIN = 1.05

mp.prec = 160

Function = Callable[[mpf], mpf]


def rounded(x: mpf, bits: int) -> mpf:
    """Return x rounded to so many bits."""
    with mp.workprec(bits):
        return +x


class Arithmetic:
    """Arithmetic of so many bits, whose multiply-adds round once or twice."""

    def __init__(self, bits: int, fused: bool) -> None:
        self.bits, self.fused = bits, fused

    def add(self, a: mpf, b: mpf) -> mpf:
        return mp.fadd(a, b, prec=self.bits)

    def sub(self, a: mpf, b: mpf) -> mpf:
        return mp.fsub(a, b, prec=self.bits)

    def mul(self, a: mpf, b: mpf) -> mpf:
        return mp.fmul(a, b, prec=self.bits)

    def div(self, a: mpf, b: mpf) -> mpf:
        return mp.fdiv(a, b, prec=self.bits)

    def mul_add(self, a: mpf, b: mpf, c: mpf) -> mpf:
        return self.add(mp.fmul(a, b, exact=True) if self.fused else self.mul(a, b), c)

    def polynomial(self, coefficients: Sequence[mpf], x: mpf) -> mpf:
        """Horner's rule; `coefficients` from the constant one up."""
        *others, value = coefficients
        for coefficient in reversed(others):
            value = self.mul_add(value, x, coefficient)
        return value


# The functions that polynomials stand for, without cancellation near 0.


def exp_rest(r: mpf) -> mpf:
    """Return q of exp r = 1 + r·(1 + r·q)."""
    return mp.hyp1f1(1, 3, r) / 2


def exp_minus_one_rest(r: mpf) -> mpf:
    """Return c of exp r - 1 = r + r²/2 + r³·c."""
    return mp.hyp1f1(1, 4, r) / 6


def half_tanh_rest(z: mpf) -> mpf:
    """Return h of tanh(r·ln 2 / 2) = r·h, for z = r²."""
    r = mp.sqrt(z)
    return mp.tanh(r * mp.ln2 / 2) / r if r else mp.ln2 / 2


def atanh_rest(z: mpf) -> mpf:
    """Return a of atanh s = s·(1 + z·a), for z = s²."""
    return mp.hyp2f1(1, 1.5, 2.5, z) / 3


def log_1p_rest(y: mpf) -> mpf:
    """Return P of log(1 + y) = y·P."""
    return mp.log1p(y) / y if y else mpf(1)


def even_part(z: mpf) -> mpf:
    """Return E of cosh d - 1 = z·E, for z = d²."""
    return 2 * mp.sinh(mp.sqrt(z) / 2) ** 2 / z if z else mpf(0.5)


def odd_part(z: mpf) -> mpf:
    """Return O of sinh d - d = d·z·O, for z = d²."""
    # The terms of its series, which has no cancellation.
    return mp.nsum(lambda k: z**k / mp.factorial(2 * k + 3), [0, 40], method="d") if z else mpf(1) / 6


def jensen_shannon_rest(z: mpf) -> mpf:
    """Return G of (h·tanh h - ln cosh h) / 2 = z·G, for z = (2·h)²."""
    h = mp.sqrt(z) / 2
    return (h * mp.tanh(h) - mp.log(mp.cosh(h))) / (2 * z) if z else mpf(1) / 16


def log_rest(f: mpf) -> mpf:
    """Return P of log(1 + f) = f + f²·P."""
    return (mp.log1p(f) - f) / f**2 if f else -mpf(1) / 2


# What kernels make of polynomials, operation by operation.


def octaves(of: Arithmetic, p: Sequence[mpf], f: mpf) -> mpf:
    return of.mul_add(of.polynomial(p, f), f, mpf(1))


def log_for_f32(of: Arithmetic, p: Sequence[mpf], f: mpf) -> mpf:
    # The kernel adds the terms in another order.
    return of.mul_add(of.polynomial(p, f), of.mul(f, f), f)


def exp(of: Arithmetic, q: Sequence[mpf], r: mpf) -> mpf:
    return of.mul_add(of.mul_add(of.polynomial(q, r), r, mpf(1)), r, mpf(1))


def exp_minus_one(of: Arithmetic, c: Sequence[mpf], r: mpf) -> mpf:
    # The kernel adds all but the last term in twice the precision: here exactly.
    cube = of.mul(of.mul(r, r), r)
    return 1 - one_of_power(r) + r + r * r / 2 + of.mul(cube, of.polynomial(c, r))


def one_of_power(r: mpf) -> mpf:
    """Return 2^-n of exp(n·ln 2 + r) - 1 = 2^n·(exp r - 2^-n) for the least n; there, r counts most."""
    return mpf(1) if r >= 0 else mpf(0.5)


def half_tanh(of: Arithmetic, h: Sequence[mpf], r: mpf) -> mpf:
    return of.mul(r, of.polynomial(h, of.mul(r, r)))


def log(of: Arithmetic, a: Sequence[mpf], f: mpf) -> mpf:
    s = of.div(f, of.add(f, mpf(2)))
    z = of.mul(s, s)
    rest = of.mul(of.polynomial(a, z), z)
    half_square = of.mul(of.mul(mpf(0.5), f), f)
    return of.sub(f, of.sub(half_square, of.mul(s, of.add(half_square, rest))))


def log_1p_f32(of: Arithmetic, p: Sequence[mpf], y: mpf) -> mpf:
    return of.mul(of.polynomial(p, y), y)


def log_of_quotient(of: Arithmetic, a: Sequence[mpf], y: mpf) -> mpf:
    s = of.div(y, of.add(y, mpf(2)))
    square, double = of.mul(s, s), of.add(s, s)
    return of.mul_add(of.mul(of.polynomial(a, square), square), double, double)


def times_argument(of: Arithmetic, p: Sequence[mpf], z: mpf) -> mpf:
    return of.mul(of.polynomial(p, z), z)


# Derivations.


def nodes(low: mpf, high: mpf, count: int) -> list[mpf]:
    """Return Chebyshev's nodes."""
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * mp.cos(mp.pi * (k + mpf(0.5)) / count) for k in range(count)]


def value(coefficients: dict[int, mpf], x: mpf) -> mpf:
    """Return Σ c·x^k of {k: c}."""
    return mp.fsum(c * x**k for k, c in coefficients.items())


def minimax(
    f: Function, weight: Function, low: mpf, high: mpf, free: Sequence[int], fixed: dict[int, mpf]
) -> tuple[dict[int, mpf], mpf]:
    """Return coefficients of the `free` powers for which max |weight·(polynomial - f)| is least, and that.

    Remez' exchange of single points on a grid, to which the tops of the error are added. If 0 lies inside
    and the lowest free power is odd, the best errors do not alternate there: they are taken times its sign.
    """
    count = len(free) + 1

    def point(x: mpf) -> Point:
        scale = weight(x) * (-1 if x < 0 and free[0] % 2 else 1)
        return Point(x, [scale * x**k for k in free], scale * (f(x) - value(fixed, x)))

    grid = [point(x) for x in [low, *nodes(low, high, 20 * count), high]]
    reference = grid[10::20]
    for _ in range(8):
        level = mpf(0)
        while True:
            rows = [[*of.powers, (-1) ** i] for i, of in enumerate(reference)]
            *found, level = mp.lu_solve(mp.matrix(rows), mp.matrix([of.goal for of in reference]))
            errors = [of.error(found) for of in grid]
            worst = max(range(len(grid)), key=lambda i: abs(errors[i]))
            if abs(errors[worst]) <= abs(level) * (1 + mpf(2) ** -60):
                break
            exchange(reference, grid[worst], found)
        tops = [
            top(*(of.x for of in grid[i - 1 : i + 2]), *errors[i - 1 : i + 2])
            for i in range(1, len(grid) - 1)
            if abs(errors[i]) >= max(abs(errors[i - 1]), abs(errors[i + 1]))
        ]
        grid = sorted(grid + [point(x) for x in tops], key=lambda of: of.x)
    return dict(zip(free, found, strict=True)), abs(level)


@dataclass(frozen=True)
class Point:
    """A point of an approximation: the weighted powers, and what they are to add up to."""

    x: mpf
    powers: list[mpf]
    goal: mpf

    def error(self, coefficients: Sequence[mpf]) -> mpf:
        return mp.fdot(coefficients, self.powers) - self.goal


def top(a: mpf, b: mpf, c: mpf, at_a: mpf, at_b: mpf, at_c: mpf) -> mpf:
    """Return where the parabola through three points has its top."""
    left, right = (b - a) * (at_b - at_c), (b - c) * (at_b - at_a)
    return b - ((b - a) * left - (b - c) * right) / (2 * (left - right)) if left != right else b


def exchange(reference: list[Point], new: Point, coefficients: Sequence[mpf]) -> None:
    """Put a point in the place of a neighbour whose error has the same sign: the signs still alternate."""
    sign = new.error(coefficients) > 0
    after = sum(of.x < new.x for of in reference)
    same = [
        i
        for i in (after - 1, after)
        if 0 <= i < len(reference) and (reference[i].error(coefficients) > 0) == sign
    ]
    if same:
        reference[same[0]] = new
    elif after == 0:
        reference[:] = [new, *reference[:-1]]
    else:
        reference[:] = [*reference[1:], new]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial with rounded coefficients that stands for a function on an interval."""

    what: str
    bits: int
    degree: int
    # What the polynomial stands for, and where.
    f: Function
    low: mpf
    high: mpf
    # By how much an error of the polynomial counts in what is made of it.
    weight: Function
    # The whole function: as kernels compute it with a polynomial's coefficients, exactly, and where.
    compute: Callable[[Arithmetic, Sequence[mpf], mpf], mpf]
    exact: Function
    domain: tuple[mpf, mpf]
    # The interval of the derivation is that much longer: rounding may push arguments beyond the end.
    stretch: str = "1"
    # Through Chebyshev's nodes, else by `minimax`.
    interpolated: bool = False
    # Powers whose coefficients are set.
    fixed: dict[int, mpf] = field(default_factory=dict)
    # Only levels with a fused multiply-add use it.
    fused: bool = False
    # How many times the derived error the numbers in src/ may have.
    margin: float = MARGIN

    def derived(self) -> list[mpf]:
        """Return the coefficients, from the constant one up."""
        low, high = self.low * mpf(self.stretch), self.high * mpf(self.stretch)
        if self.interpolated:
            found = mp.chebyfit(self.f, [low, high], self.degree + 1)[::-1]
            return [self.fixed.get(k, rounded(c, self.bits)) for k, c in enumerate(found)]
        # The constant coefficient is rounded first, and each time the others make the best of what that does.
        coefficients = dict(self.fixed)
        free = [k for k in range(self.degree + 1) if k not in coefficients]
        while free:
            found, _ = minimax(self.f, self.weight, low, high, free, coefficients)
            coefficients[free[0]] = rounded(found[free[0]], self.bits)
            free = free[1:]
        return [coefficients[k] for k in range(self.degree + 1)]

    def least_error(self) -> mpf:
        """Return the error of the best polynomial with real coefficients."""
        return minimax(self.f, self.weight, self.low, self.high, range(self.degree + 1), {})[1]

    def error(self, coefficients: Sequence[mpf]) -> mpf:
        """Return the largest relative error in exact arithmetic."""
        powers = dict(enumerate(coefficients))
        points = [self.low, *nodes(self.low, self.high, 500), self.high]
        return max(abs(self.weight(x) * (value(powers, x) - self.f(x))) for x in points)

    def computed_error(self, coefficients: Sequence[mpf]) -> mpf:
        """Return the largest relative error in the kernel's arithmetic, over a few thousand numbers."""
        arithmetic = Arithmetic(self.bits, self.fused)
        points = [rounded(x, self.bits) for x in nodes(*self.domain, 3001)]
        return max(abs(self.compute(arithmetic, coefficients, x) / self.exact(x) - 1) for x in points if x)


def times_square(what: str, f: Function, bits: int, degree: int, high: mpf) -> Polynomial:
    return Polynomial(
        what=f"{what}, z ≤ {mp.nstr(high, 4)}",
        bits=bits,
        degree=degree,
        f=f,
        low=mpf(0),
        high=high,
        weight=lambda z: 1 / f(z),
        compute=times_argument,
        exact=lambda z: z * f(z),
        domain=(mpf(0), high),
    )


def even(bits: int, degree: int) -> Polynomial:
    return times_square("E of cosh d - 1 = z·E(z), z = d²", even_part, bits, degree, mpf(1))


def odd(bits: int, degree: int) -> Polynomial:
    return times_square("O of sinh d - d = d·z·O(z), z = d²", odd_part, bits, degree, mpf(1))


def jensen_shannon(bits: int, degree: int, high: mpf) -> Polynomial:
    what = "G of (h·tanh h - ln cosh h) / 2 = z·G(z), z = (2·h)²"
    return times_square(what, jensen_shannon_rest, bits, degree, high)


def exponential(bits: int, steps: int, degree: int, **options: object) -> Polynomial:
    end = mp.ln2 / (2 * steps)
    return Polynomial(
        what=f"q of exp r = 1 + r·(1 + r·q(r)), |r| ≤ ln 2 / {2 * steps}",
        bits=bits,
        degree=degree,
        f=exp_rest,
        low=-end,
        high=end,
        weight=lambda r: r * r * mp.exp(-r),
        compute=exp,
        exact=mp.exp,
        domain=(-end, end),
        **options,
    )


def of_octaves(bits: int, steps: int, degree: int, **options: object) -> Polynomial:
    step = mp.ln2 / steps
    return Polynomial(
        what=f"p of 2^(f/{steps}) = 1 + f·p(f), |f| ≤ 1/2",
        bits=bits,
        degree=degree,
        f=lambda f: mp.expm1(f * step) / f if f else step,
        low=-mpf(0.5),
        high=mpf(0.5),
        weight=lambda f: abs(f) * mp.exp(-f * step),
        compute=octaves,
        exact=lambda f: mp.exp(f * step),
        domain=(-mpf(0.5), mpf(0.5)),
        stretch="1.001",
        **options,
    )


def of_quotient(bits: int, degree: int, **options: object) -> Polynomial:
    return Polynomial(
        what="P of log(1 + y) = 2s·(1 + s²·P(s²)), s = y / (2 + y), -½ ≤ y ≤ 1",
        bits=bits,
        degree=degree,
        f=atanh_rest,
        low=mpf(0),
        high=mpf(1) / 9,
        weight=lambda z: z / (1 + z * atanh_rest(z)),
        compute=log_of_quotient,
        exact=mp.log1p,
        domain=(-mpf(0.5), mpf(1)),
        **options,
    )


POLYNOMIALS = {
    "octaves_f32_by_eighths": of_octaves(24, 8, 2, fused=True),
    "octaves_f32": of_octaves(24, 1, 5),
    # Of the two in f64 the numbers in src/ are minimax, which takes minutes to derive.
    "octaves_f64_by_eighths": of_octaves(53, 8, 6, interpolated=True, fused=True),
    "octaves_f64": of_octaves(53, 1, 10, interpolated=True),
    "log_for_f32": Polynomial(
        what="P of log(1 + f) = f + f²·P(f), √½ - 1 ≤ f ≤ √2 - 1",
        bits=53,
        degree=10,
        f=log_rest,
        low=mp.sqrt(0.5) - 1,
        high=mp.sqrt(2) - 1,
        weight=lambda f: f * f / mp.log1p(f) if f else mpf(0),
        compute=log_for_f32,
        exact=mp.log1p,
        domain=(mp.sqrt(0.5) - 1, mp.sqrt(2) - 1),
        interpolated=True,
    ),
    "exp_f32_by_eighths": exponential(24, 8, 1, stretch="1.001", fused=True),
    # The numbers in src/ are older than this script and off by 0.14 u. The derived ones would be by 0.06 u,
    # the whole by 1.26 u instead of 1.37: not enough to change the bits of a level for.
    "exp_f32": exponential(24, 1, 4, fixed={0: mpf(0.5)}, margin=2.3),
    "exp_f64_by_eighths": exponential(53, 8, 5, stretch="1.001", fused=True),
    "exp_f64": exponential(53, 1, 9, stretch="1.0005", interpolated=True, fixed={0: mpf(0.5)}),
    "exp_minus_one": Polynomial(
        what="c of exp r - 1 = r + r²/2 + r³·c(r), |r| ≤ ln 2 / 2",
        bits=53,
        degree=9,
        f=exp_minus_one_rest,
        low=-mp.ln2 / 2,
        high=mp.ln2 / 2,
        weight=lambda r: r * r * r / (mp.exp(r) - one_of_power(r)) if r else mpf(0),
        compute=exp_minus_one,
        exact=lambda r: mp.exp(r) - one_of_power(r),
        domain=(-mp.ln2 / 2, mp.ln2 / 2),
        stretch="1.003",
        interpolated=True,
    ),
    "half_tanh": Polynomial(
        what="h of tanh(r·ln 2 / 2) = r·h(r²), |r| ≤ 1/2",
        bits=53,
        degree=3,
        f=half_tanh_rest,
        low=mpf(0),
        high=mpf(0.25),
        weight=lambda z: 1 / half_tanh_rest(z),
        compute=half_tanh,
        exact=lambda r: mp.tanh(r * mp.ln2 / 2),
        domain=(mpf(-0.5), mpf(0.5)),
    ),
    "log": Polynomial(
        what="R(z) / z of 2·atanh s = s·(2 + R(z)), z = s², |s| ≤ (√2 - 1) / (√2 + 1)",
        bits=53,
        degree=6,
        f=lambda z: 2 * atanh_rest(z),
        low=mpf(0),
        high=((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2,
        weight=lambda z: z / (2 + 2 * z * atanh_rest(z)),
        compute=log,
        exact=mp.log1p,
        domain=(mp.sqrt(0.5) - 1, mp.sqrt(2) - 1),
        stretch="1.000001",
        interpolated=True,
    ),
    "log_1p_f32": Polynomial(
        what="P of log(1 + y) = y·P(y), 0 ≤ y ≤ 1",
        bits=24,
        degree=9,
        f=log_1p_rest,
        low=mpf(0),
        high=mpf(1),
        weight=lambda y: 1 / log_1p_rest(y),
        compute=log_1p_f32,
        exact=mp.log1p,
        domain=(mpf(0), mpf(1)),
    ),
    "quotient_f32": of_quotient(24, 3),
    "quotient_f64": of_quotient(53, 10, interpolated=True),
    "even_f32": even(24, 3),
    "even_f64": even(53, 6),
    "odd_f32": odd(24, 3),
    "odd_f64": odd(53, 6),
    "jensen_shannon_f32": jensen_shannon(24, 4, mpf(1)),
    "jensen_shannon_f64": jensen_shannon(53, 5, mpf(1) / 16),
}


@dataclass(frozen=True)
class Table:
    """Numbers that are rounded from exact ones."""

    what: str
    bits: int
    exact: tuple[mpf, ...]
    # The numbers are the parts of one. The first has so many binary digits, the second is what is left.
    first_bits: int | None = None

    def derived(self) -> list[mpf]:
        """Return the numbers."""
        if self.first_bits is None:
            return [rounded(x, self.bits) for x in self.exact]
        first = mp.floor(self.exact[0] * 2**self.first_bits) / 2**self.first_bits
        return [first, rounded(self.exact[0] - first, self.bits)]

    def error(self, numbers: Sequence[mpf]) -> mpf:
        """Return the largest relative error."""
        found = numbers if self.first_bits is None else [mp.fsum(numbers)]
        return max(abs(x / exact - 1) for x, exact in zip(found, self.exact, strict=True))


TABLES = {
    "eighths_f32": Table("8·log₂ e as a sum of two", 24, (8 / mp.ln2,), first_bits=20),
    "eighths_f64": Table("8·log₂ e as a sum of two", 53, (8 / mp.ln2,), first_bits=49),
    "eighths": Table("2^(j/8), j from 0 to 7", 53, tuple(mpf(2) ** (mpf(j) / 8) for j in range(8))),
    # Times n, up to 2^8 (2^12) for a difference of exponents, the first part is exact.
    "ln_2_f32": Table("ln 2 as a sum of two", 24, (+mp.ln2,), first_bits=15),
    "ln_2_f64": Table("ln 2 as a sum of two", 53, (+mp.ln2,), first_bits=33),
}
CONSTANTS: dict[str, Polynomial | Table] = {**TABLES, **POLYNOMIALS}


# What src/ holds.


@dataclass(frozen=True)
class Found:
    """An array after its line in a source file."""

    place: str
    claim: str
    literals: list[str]

    def numbers(self, bits: int) -> list[mpf]:
        """Return the numbers as the compiler rounds them."""
        with mp.workprec(bits):
            return [
                mp.sqrt(2) if literal.endswith("SQRT_2") else mpf(literal.replace("_", ""))
                for literal in self.literals
            ]


def found_in(root: Path) -> tuple[dict[str, Found], list[str]]:
    """Return the arrays by name, and what is wrong with the files."""
    found: dict[str, Found] = {}
    faults = []
    for path in sorted((root / "src").rglob("*.rs")):
        text = path.read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        place = path.relative_to(root).as_posix()
        spans = []
        for tag in TAG.finditer(text):
            name, claim = tag.groups()
            array = ARRAY.search(text, tag.end())
            line = text.count("\n", 0, tag.start()) + 1
            if name not in CONSTANTS or name in found or array is None:
                faults.append(f"{place}:{line}: {name} is unknown, there twice, or without numbers")
                continue
            literals = [literal.strip() for literal in array[1].split(",") if literal.strip()]
            found[name] = Found(f"{place}:{line}: {name}", claim, literals)
            spans.append(array.span())
        for literal in LITERAL.finditer(re.sub(r"//.*", lambda comment: " " * len(comment[0]), text)):
            inside = any(begin <= literal.start() < end for begin, end in spans)
            if not inside and len(literal[0].strip("0_.")) > 7 and not is_short(literal[0]):
                line = text.count("\n", 0, literal.start()) + 1
                faults.append(f"{place}:{line}: {literal[0]} has no line that says where it is derived")
    faults += [f"src/ has no {name}" for name in CONSTANTS.keys() - found.keys()]
    return found, faults


def is_short(literal: str) -> bool:
    """Return whether a number is a power of two, or 3/2 of one: those say what they are."""
    number = mpf(literal.replace("_", ""))
    return any(mp.frexp(rounded(number / k, 53))[0] == mpf(0.5) for k in (1, 3))


def units(numbers: Sequence[mpf], others: Sequence[mpf], bits: int) -> int:
    """Return by how many units in the last place two lists differ at most."""
    ulps = (abs(x - y) / mpf(2) ** (mp.frexp(y)[1] - bits) for x, y in zip(numbers, others, strict=True))
    return int(mp.nint(max(ulps)))


def power(error: mpf) -> str:
    """Write an error as in the lines of src/: the exponent of 2^-E."""
    return f"{float(-mp.log(error, 2)):.2f}"


def show(name: str, constant: Polynomial | Table) -> None:
    """Print what is derived, as it is written in src/, and its error."""
    numbers = constant.derived()
    print(f"{name}: {constant.what}")
    for number in reversed(numbers) if isinstance(constant, Polynomial) else numbers:
        print(f"    {mp.nstr(number, 9 if constant.bits == 24 else 17)}")
    print(f"    relative error 2^-{power(constant.error(numbers))}")


def faults_of(constant: Polynomial | Table, found: Found) -> list[str]:
    """Print the errors of an array in src/, and return what is wrong with it."""
    numbers, derived, margin = found.numbers(constant.bits), constant.derived(), 1.0
    if len(numbers) != len(derived):
        return [f"{found.place} has {len(numbers)} numbers; expected {len(derived)}"]
    if isinstance(constant, Polynomial):
        numbers, margin = numbers[::-1], constant.margin
    error, of_derived = constant.error(numbers), constant.error(derived)
    differ = units(numbers, derived, constant.bits) > 0
    line = f"relative error 2^-{power(error)}, "
    line += f"derived 2^-{power(of_derived)}" if differ else "the bits derived"
    if isinstance(constant, Polynomial):
        line += f", best 2^-{power(constant.least_error())}"
        line += f"; computed 2^-{power(constant.computed_error(numbers))}"
    print(f"{found.place}: {line}", flush=True)
    faults = []
    if differ and error > margin * of_derived:
        times = mp.nstr(error / of_derived, 3)
        faults.append(f"{found.place} has {times} times the error of the derived; expected at most {margin}")
    if found.claim != power(error):
        faults.append(f"{found.place} claims an error of 2^-{found.claim}; expected 2^-{power(error)}")
    return faults


def main() -> None:
    """Print all constants, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with src/; fail unless that is as good")
    if not parser.parse_args().check:
        for name, constant in CONSTANTS.items():
            show(name, constant)
        return
    found, faults = found_in(ROOT)
    for name, of_source in found.items():
        faults += faults_of(CONSTANTS[name], of_source)
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
