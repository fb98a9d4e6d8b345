"""What this package is to reach, and whether a record of the benchmark says that it does.

A share of the roof is the time of the roof by that of the call: R is the time in which the memory is read, W
that in which it is read and as much is written.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xent_rs.cli.benchmark.cases import GRADIENT, JOBS, LOSS

from . import tables

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
        The goal, for people, with ``{}`` in place of the limit.
    limit : float or mapping
        The goal: at least that, or if `at_most` at most that; if it depends on the SIMD level, by level.
    values : callable
        Takes the results of a record by suite; returns what was measured, by where.
    at_most : bool
        Which of both.
    """

    case: str
    wanted: str
    limit: float | Mapping[str, float]
    values: Reader
    at_most: bool = False

    def line(self, suites: Suites, level: str) -> list[str] | None:
        """Return the line of the table: case, goal, the worst value and all others, and whether it is met.

        None if the record does not know, or if there is no goal for its SIMD level.
        """
        limit = self.limit.get(level) if isinstance(self.limit, Mapping) else self.limit
        values = self.values(suites)
        if not values or limit is None:
            return None
        worst = (max if self.at_most else min)(values.values())
        met = worst <= limit if self.at_most else worst >= limit
        off = worst / limit - 1 if self.at_most else 1 - worst / limit
        measured = ", ".join(
            f"{value:.3g}{f' ({where})' if where and len(values) > 1 else ''}"
            for where, value in values.items()
        )
        missed = f"missed by {100 * off:.{1 if off < 0.1 else 0}f} %"
        return [self.case, self.wanted.format(f"{limit:.3g}"), measured, "met" if met else missed]


def table(suites: Suites, level: str) -> list[list[str]]:
    """Return the table of the goals of which a record knows, its first line the head."""
    lines = (goal.line(suites, level) for goal in GOALS)
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


def times_faster(
    suite: str, job: str, which: Callable[[Result], bool], peers: Collection[str] = ()
) -> Reader:
    """Return a reader of how many times as fast as peers this package is, the three least.

    `peers` are their names; empty for all.
    """

    def values(suites: Suites) -> dict[str, float]:
        found = {}
        for peer, ours in tables.against(suites.get(suite, [])):
            if peer["job"] == job and which(peer) and (not peers or peer["contender"] in peers):
                kind = f"{peer['kind']}, " if "kind" in peer else ""
                place = f"{kind}{peer['classes']} classes, {peer['contender']}"
                found[place] = peer["median"] / ours["median"]
        return three(found, min)

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


def comparison(which: Callable[[Result], bool]) -> Reader:
    """Return a reader of the time of comparing two float32 models by that of reading both."""

    def values(suites: Suites) -> dict[str, float]:
        return {
            f"{result['kind']}, {where(result)}": result["median"] / result["roof"]
            for result in suites.get("compare", [])
            if result["contender"] == "xent_rs" and "bfloat16" not in result["kind"] and which(result)
        }

    return values


def options(
    names: Collection[str], job: str, which: Callable[[Result], bool] = lambda result: True
) -> Reader:
    """Return a reader of the three largest times of options beyond their bytes, by that of the plain call."""

    def values(suites: Suites) -> dict[str, float]:
        return three(
            {
                (f"{result['contender']}, " if len(names) > 1 else "") + where(result): result["beyond"]
                for result in suites.get("options", [])
                if result["contender"] in names and result["job"] == job and which(result)
            },
            max,
        )

    return values


def sixteen(suites: Suites) -> dict[str, float]:
    """Return the three largest times of 16-bit logits in cache, by that of as many float32 ones."""
    medians = {
        (result["job"], where(result), result["dtype"]): result["median"]
        for result in suites.get("sixteen", [])
    }
    return three(
        {
            f"{dtype}, {job}, {shape}": median / medians[job, shape, "float32"]
            for (job, shape, dtype), median in medians.items()
            if dtype != "float32"
        },
        max,
    )


def three(found: dict[str, float], worst: Callable[[Iterable[float]], float]) -> dict[str, float]:
    """Return the three worst values, the worst first."""
    values = sorted(found.items(), key=lambda item: item[1], reverse=worst is max)
    return dict(values[:3])


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


def usual(result: Result) -> bool:
    """Whether the shape is 2048 x 32000."""
    return bool((result["rows"], result["classes"]) == (2048, 32_000))


def thousand(result: Result) -> bool:
    """Whether the shape is 16384 x 1000."""
    return bool((result["rows"], result["classes"]) == (16_384, 1000))


OURS = {LOSS: "xent_rs", GRADIENT: "xent_rs, out="}
EAGER = ("PyTorch", "PyTorch, new array")
# What an option may cost: its loss and its gradient, by the plain ones.
OPTIONS = {
    "softcap": (3.0, 4.0),
    "KL divergence": (2.2, 3.0),
    "probabilities": (1.8, 2.0),
    "class weights, smoothing": (1.8, 2.0),
    "row_statistics": (1.3, None),
}
OTHER_OPTIONS = (
    "label smoothing",
    "class weights",
    "sample weights",
    "z-loss",
    "temperature",
    "probabilities, smoothing",
)

MANY = "C >= 32000"

GOALS = [
    *(
        Goal(
            f"{job}, {numbers} classes, against each peer; the three least",
            ">= {} x",
            times,
            times_faster("classes", job, which),
        )
        for numbers, times, which in (
            ("2 to 100", 1.5, lambda result: result["classes"] <= 100),
            ("more than 100", 2.0, lambda result: result["classes"] > 100),
        )
        for job in JOBS
    ),
    *(
        Goal(
            f"{job}, classes on axis 1, {' and '.join(kinds)}, against PyTorch; the three least",
            ">= {} x",
            times,
            times_faster("axis1", job, lambda result, kinds=kinds: result["kind"] in kinds, EAGER),
        )
        for kinds, times in ((("class targets",), 2.0), (("soft targets", "KL divergence"), 1.0))
        for job in JOBS
    ),
    Goal(
        "loss, float32, 2048 x 32000",
        ">= {} R",
        {"avx2": 0.8, "avx512": 0.95},
        of_roof("xent_rs", LOSS, "float32", usual),
    ),
    Goal(
        "loss + gradient, `out=`, float32, 2048 x 32000",
        ">= {} W",
        {"avx2": 0.75, "avx512": 0.9},
        of_roof("xent_rs, out=", GRADIENT, "float32", usual),
    ),
    Goal(f"loss, {MANY}, on one thread, R of one", ">= {} R", 0.80, one_thread("of_roof")),
    Goal("the same on one thread, R of all", ">= {} R", 0.80, one_thread("of_full_roof")),
    Goal("loss, float32, 16384 x 1000", ">= {} R", 0.85, of_roof("xent_rs", LOSS, "float32", thousand)),
    Goal(f"loss, float64, {MANY}", ">= {} R", 0.85, of_roof("xent_rs", LOSS, "float64", long)),
    Goal(f"loss + gradient, in place, float32, {MANY}", ">= {} W", 0.90, in_place),
    Goal("loss + gradient, a new array each call", "<= {} x the time with `out=`", 1.3, fresh, at_most=True),
    Goal("bfloat16 and float16 in cache; the three worst", "<= {} x float32", 1.15, sixteen, at_most=True),
    Goal("binary loss, 4 Mi elements", ">= {} R", 0.80, binary(LOSS)),
    Goal("binary loss + gradient, 4 Mi elements", ">= {} W", 0.80, binary(GRADIENT)),
    *(
        Goal(
            f"two float32 models compared, {classes}",
            "<= {} x reading both",
            {"avx2": 2.5, "avx512": 1.3},
            comparison(which),
            at_most=True,
        )
        for classes, which in (
            ("C >= 1000", lambda result: result["classes"] >= 1000),
            ("fewer classes", lambda result: result["classes"] < 1000),
        )
    ),
    *(
        Goal(f"{name}, {job}, beyond its bytes", "<= {} x plain", limit, options((name,), job), at_most=True)
        for name, limits in OPTIONS.items()
        for job, limit in zip(JOBS, limits, strict=True)
        if limit is not None
    ),
    *(
        Goal(
            f"64 classes of a teacher, {job}, 2048 x 32000",
            "<= {} x plain",
            1.15,
            options(("sparse targets", "sparse targets, tail"), job, usual),
            at_most=True,
        )
        for job in JOBS
    ),
    *(
        Goal(
            f"{job}, every other option, beyond its bytes; the three worst",
            "<= {} x plain",
            1.25,
            options(OTHER_OPTIONS, job),
            at_most=True,
        )
        for job in JOBS
    ),
    Goal("smallest call, loss", "<= {} of PyTorch's", 2 / 3, smallest(LOSS), at_most=True),
    Goal("smallest call, loss + gradient", "<= {} of PyTorch's", 2 / 3, smallest(GRADIENT), at_most=True),
    Goal("memory of the loss, above 16 bytes a row", "<= {} MiB", 1, memory(LOSS), at_most=True),
    Goal(
        "memory with the gradient, above it and 16 bytes a row",
        "<= {} MiB",
        1,
        memory(GRADIENT),
        at_most=True,
    ),
    Goal(
        "loss, time per element, 10^6 to 10^9", "largest <= {} x smallest", 1.15, growth(LOSS), at_most=True
    ),
    Goal(
        "loss + gradient, time per element, 10^6 to 10^9",
        "largest <= {} x smallest",
        1.15,
        growth(GRADIENT),
        at_most=True,
    ),
    *(
        Goal(
            f"{job}, classes along the first axis, time per element",
            "<= {} x that of fewer",
            1.3,
            first_axis(job),
            at_most=True,
        )
        for job in (LOSS, GRADIENT)
    ),
    # A tenth is what handing work out may cost where nobody is free to take it.
    Goal("loss beside others, 95 % of the calls", "<= {} x one thread's", 1.1, beside, at_most=True),
    Goal(f"speed of AVX2, float32, {MANY}", ">= {} of AVX-512's", 0.80, avx2),
]
