"""What this package is to reach, and whether a record of the benchmark says that it does.

A share of the roof is the time of the roof by that of the call: R is the time in which the memory is read, W
that in which it is read and as much is written.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from xent_rs.cli.benchmark.cases import GRADIENT, LOSS

Result = dict[str, Any]
Suites = dict[str, list[Result]]
Reader = Callable[[Suites], dict[str, float]]

LONG = 32_000


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes
    ----------
    case : str
        What is measured.
    wanted : str
        The goal, for people.
    limit : float
        The goal: at least that, or if `at_most` at most that.
    values : callable
        Takes the results of a record by suite; returns what was measured, by where.
    at_most : bool
        Which of both.
    """

    case: str
    wanted: str
    limit: float
    values: Reader
    at_most: bool = False

    def line(self, suites: Suites) -> list[str] | None:
        """Return the line of the table: case, goal, the worst value and all others, and whether it is met.

        None if the record does not know.
        """
        values = self.values(suites)
        if not values:
            return None
        worst = (max if self.at_most else min)(values.values())
        met = worst <= self.limit if self.at_most else worst >= self.limit
        off = worst / self.limit - 1 if self.at_most else 1 - worst / self.limit
        measured = ", ".join(
            f"{value:.3g}{f' ({where})' if where and len(values) > 1 else ''}"
            for where, value in values.items()
        )
        missed = f"missed by {100 * off:.{1 if off < 0.1 else 0}f} %"
        return [self.case, self.wanted, measured, "met" if met else missed]


def table(suites: Suites) -> list[list[str]]:
    """Return the table of the goals of which a record knows, its first line the head."""
    lines = (goal.line(suites) for goal in GOALS)
    return [["case", "goal", "measured", ""], *(line for line in lines if line is not None)]


def of_roof(contender: str, job: str, dtype: str, which: Callable[[Result], bool]) -> Reader:
    """Return a reader of shares of the roof, by shape."""

    def values(suites: Suites) -> dict[str, float]:
        return {
            where(result): result["of_roof"]
            for result in chosen(suites.get("peers", []), contender, job, dtype)
            if which(result)
        }

    return values


def times_faster(peer: str, job: str, which: Callable[[Result], bool]) -> Reader:
    """Return a reader of how many times as fast as a peer, in its fastest way, this package is, by shape."""

    def values(suites: Suites) -> dict[str, float]:
        results = [result for result in suites.get("peers", []) if which(result)]
        theirs: dict[str, float] = {}
        for result in results:
            ways = (peer, f"{peer}, out=", f"{peer}, new array")
            if (result["job"], result["dtype"]) == (job, "float32") and result["contender"] in ways:
                theirs[where(result)] = min(theirs.get(where(result), float("inf")), result["median"])
        return {
            where(ours): theirs[where(ours)] / ours["median"]
            for ours in chosen(results, OURS[job], job, "float32")
            if where(ours) in theirs
        }

    return values


def fresh(suites: Suites) -> dict[str, float]:
    """Return the time with a new array by that with out=, by shape."""
    peers = suites.get("peers", [])
    with_out = {where(result): result for result in chosen(peers, OURS[GRADIENT], GRADIENT, "float32")}
    return {
        where(result): result["median"] / with_out[where(result)]["median"]
        for result in chosen(peers, "xent_rs, new array", GRADIENT, "float32")
        if where(result) in with_out
    }


def avx2(suites: Suites) -> dict[str, float]:
    """Return the speed of AVX2 by that of AVX-512, by job and shape."""
    medians = {
        (result["level"], result["job"], where(result)): result["median"]
        for result in suites.get("peers", [])
        if "level" in result
        and "new array" not in result["contender"]
        and result["dtype"] == "float32"
        and long(result)
    }
    return {
        f"{job}, {shape}": medians["avx512", job, shape] / median
        for (level, job, shape), median in medians.items()
        if level == "avx2" and ("avx512", job, shape) in medians
    }


def one_thread(field: str) -> Reader:
    """Return a reader of the shares of a roof that one thread reaches, by shape."""
    return lambda suites: {
        where(result): result[field]
        for result in suites.get("threads", [])
        if result["threads"] == 1 and result["job"] == LOSS and long(result)
    }


def binary(job: str) -> Reader:
    """Return a reader of the shares of the roof of binary cross-entropy, by the kind of targets."""
    names = {"xent_rs": "float32 targets", "xent_rs, bool targets": "bool targets"}
    return lambda suites: {
        names[result["contender"].removesuffix(", out=")]: result["of_roof"]
        for result in suites.get("binary", [])
        if result["job"] == job and result["contender"].startswith("xent_rs")
    }


def options(which: Callable[[str], bool]) -> Reader:
    """Return a reader of the three largest times of options beyond their bytes, by that of the plain loss."""

    def values(suites: Suites) -> dict[str, float]:
        found = {
            f"{result['contender']}, {result['job']}, {where(result)}": result["beyond"]
            for result in suites.get("options", [])
            if result["contender"] in OPTIONS and which(result["contender"])
        }
        return dict(sorted(found.items(), key=lambda item: -item[1])[:3])

    return values


def smallest(job: str) -> Reader:
    """Return a reader of the time of the smallest call by that of PyTorch."""

    def values(suites: Suites) -> dict[str, float]:
        medians = {
            result["contender"]: result["median"]
            for result in suites.get("smallest", [])
            if result["job"] == job
        }
        theirs = [medians[name] for name in ("PyTorch", "PyTorch, new array") if name in medians]
        return {"": medians[OURS[job]] / theirs[0]} if theirs else {}

    return values


def in_place(suites: Suites) -> dict[str, float]:
    """Return the shares of the roof of the gradient in place of the logits, by shape."""
    return {
        where(result): result["of_roof"]
        for result in suites.get("options", [])
        if result["contender"] == "in place" and long(result)
    }


def memory(job: str) -> Reader:
    """Return a reader of the memory above what is allowed for the shape, in MiB; negative if below.

    Allowed are 16 bytes a row, and with a new gradient the gradient.
    """
    name = {LOSS: "xent_rs", GRADIENT: "xent_rs, new array"}[job]

    def values(suites: Suites) -> dict[str, float]:
        found = {}
        for result in chosen(suites.get("memory", []), name, job, "float32"):
            allowed = 16 * result["rows"]
            if job == GRADIENT:
                allowed += 4 * result["rows"] * result["classes"]
            found[where(result)] = (result["above"] - allowed) / 2**20
        return found

    return values


def growth(job: str) -> Reader:
    """Return a reader of the largest time per element by the smallest, by the number of classes."""

    def values(suites: Suites) -> dict[str, float]:
        times: dict[str, list[float]] = {}
        for result in suites.get("growth", []):
            if result["job"] == job:
                elements = result["rows"] * result["classes"]
                times.setdefault(f"{result['classes']} classes", []).append(result["median"] / elements)
        return {classes: max(some) / min(some) for classes, some in times.items()}

    return values


def first_axis(job: str) -> Reader:
    """Return a reader of the time per element along the first axis, by that of fewer classes."""
    contender = {LOSS: "xent_rs, axis=0", GRADIENT: "xent_rs, axis=0, out="}[job]

    def values(suites: Suites) -> dict[str, float]:
        times = {
            result["classes"]: result["median"] / (result["rows"] * result["classes"])
            for result in chosen(suites.get("classes", []), contender, job, "float32")
        }
        return {
            f"{classes} by {fewer}": times[classes] / times[fewer]
            for classes, fewer in ((1100, 1000), (4100, 4096), (32_000, 4096))
            if classes in times and fewer in times
        }

    return values


def beside(suites: Suites) -> dict[str, float]:
    """Return the time that 95 % of the calls stay below, by that of one thread, by who else uses the CPUs."""
    found: dict[str, dict[bool, float]] = {}
    for result in suites.get("beside", []):
        found.setdefault(result["company"], {})[result["threads"] == 1] = result["p95"]
    return {company: of[False] / of[True] for company, of in found.items()}


def chosen(results: Iterable[Result], contender: str, job: str, dtype: str) -> list[Result]:
    """Return the results of a contender for a job and dtype."""
    return [
        result
        for result in results
        if (result["contender"], result["job"], result["dtype"]) == (contender, job, dtype)
    ]


def where(result: Result) -> str:
    """Write the shape of a result."""
    return f"{result['rows']} x {result['classes']}"


def long(result: Result) -> bool:
    """Whether there are many classes."""
    return bool(result["classes"] >= LONG)


def few(result: Result) -> bool:
    """Whether the shape is 262144 x 10."""
    return bool((result["rows"], result["classes"]) == (262_144, 10))


def thousand(result: Result) -> bool:
    """Whether the shape is 16384 x 1000."""
    return bool((result["rows"], result["classes"]) == (16_384, 1000))


OURS = {LOSS: "xent_rs", GRADIENT: "xent_rs, out="}
OPTIONS = {
    "label smoothing",
    "class weights",
    "class weights, smoothing",
    "sample weights",
    "z-loss",
    "temperature",
    "softcap",
    "probabilities",
    "probabilities, smoothing",
    "row_statistics",
}

MANY = "C >= 32000"

GOALS = [
    Goal(f"loss, float32, {MANY}", ">= 0.95 R", 0.95, of_roof("xent_rs", LOSS, "float32", long)),
    Goal("the same on one thread, R of one", ">= 0.80 R", 0.80, one_thread("of_roof")),
    Goal("the same on one thread, R of all", ">= 0.80 R", 0.80, one_thread("of_full_roof")),
    Goal("loss, float32, 16384 x 1000", ">= 0.85 R", 0.85, of_roof("xent_rs", LOSS, "float32", thousand)),
    Goal(f"loss, bfloat16, {MANY}", ">= 0.90 R", 0.90, of_roof("xent_rs", LOSS, "bfloat16", long)),
    Goal(f"loss, float16, {MANY}", ">= 0.90 R", 0.90, of_roof("xent_rs", LOSS, "float16", long)),
    Goal(f"loss, float64, {MANY}", ">= 0.85 R", 0.85, of_roof("xent_rs", LOSS, "float64", long)),
    Goal(
        f"loss + gradient, `out=`, float32, {MANY}",
        ">= 0.90 W",
        0.90,
        of_roof("xent_rs, out=", GRADIENT, "float32", long),
    ),
    Goal(f"loss + gradient, in place, float32, {MANY}", ">= 0.90 W", 0.90, in_place),
    Goal("loss + gradient, a new array each call", "<= 1.3 x the time with `out=`", 1.3, fresh, at_most=True),
    *(
        Goal(f"{job}, 262144 x 10, against {peer}", f">= {times} x", times, times_faster(peer, job, few))
        for job, peer, times in (
            (LOSS, "PyTorch, compiled", 5),
            (LOSS, "NumPy", 20),
            (LOSS, "scikit-learn", 10),
            (GRADIENT, "JAX", 5),
            (GRADIENT, "scikit-learn", 10),
        )
    ),
    *(
        Goal(f"{job}, {MANY}, against {peer}", f">= {times} x", times, times_faster(peer, job, long))
        for job, peer, times in (
            (LOSS, "NumPy", 10),
            (LOSS, "PyTorch", 10),
            (LOSS, "PyTorch, compiled", 1.7),
            (GRADIENT, "NumPy", 9),
            (GRADIENT, "PyTorch", 15),
            (GRADIENT, "PyTorch, compiled", 7),
            (GRADIENT, "JAX", 7),
        )
    ),
    Goal("binary loss, 4 Mi elements", ">= 0.80 R", 0.80, binary(LOSS)),
    Goal("binary loss + gradient, 4 Mi elements", ">= 0.80 W", 0.80, binary(GRADIENT)),
    Goal(
        "every option but the softcap, beyond its bytes; the three worst",
        "<= 1.25 x plain",
        1.25,
        options(lambda name: name != "softcap"),
        at_most=True,
    ),
    Goal(
        "softcap; the three worst", "<= 2 x plain", 2, options(lambda name: name == "softcap"), at_most=True
    ),
    Goal("smallest call, loss", "<= 2/3 of PyTorch's", 2 / 3, smallest(LOSS), at_most=True),
    Goal("smallest call, loss + gradient", "<= 2/3 of PyTorch's", 2 / 3, smallest(GRADIENT), at_most=True),
    Goal("memory of the loss, above 16 bytes a row", "<= 1 MiB", 1, memory(LOSS), at_most=True),
    Goal(
        "memory with the gradient, above it and 16 bytes a row", "<= 1 MiB", 1, memory(GRADIENT), at_most=True
    ),
    Goal(
        "loss, time per element, 10^6 to 10^9", "largest <= 1.15 x smallest", 1.15, growth(LOSS), at_most=True
    ),
    Goal(
        "loss + gradient, time per element, 10^6 to 10^9",
        "largest <= 1.15 x smallest",
        1.15,
        growth(GRADIENT),
        at_most=True,
    ),
    *(
        Goal(
            f"{job}, classes along the first axis, time per element",
            "<= 1.3 x that of fewer",
            1.3,
            first_axis(job),
            at_most=True,
        )
        for job in (LOSS, GRADIENT)
    ),
    # A tenth is what handing work out may cost where nobody is free to take it.
    Goal("loss beside others, 95 % of the calls", "<= 1.1 x one thread's", 1.1, beside, at_most=True),
    Goal(f"speed of AVX2, float32, {MANY}", ">= 0.80 of AVX-512's", 0.80, avx2),
]
