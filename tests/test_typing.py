"""Signatures and types, as callers and type checkers see them."""

import functools
import inspect
import math
import operator
import pickle
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import xent_rs

REDUCTION = "reduction='mean', denominator=None"
SMOOTHED = "weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0"
OPTIONS = f"{SMOOTHED}, z_loss=0.0, softcap=None, temperature=1.0, focal_gamma=0.0, poly_epsilon=0.0, axis=-1"
LOSS = f"logits, targets, *, {OPTIONS}, {REDUCTION}"
SMOOTHED_BINARY = "weight=None, pos_weight=None, ignore_index=None, label_smoothing=0.0"
BINARY = f"logits, targets, *, {SMOOTHED_BINARY}, focal_gamma=0.0, {REDUCTION}"
FORWARD_KL = "temperature=1.0, axis=-1, reduction='mean', sample_weight=None, denominator=None"
KL = f"logits, target_logits, *, kind='forward', beta=0.5, {FORWARD_KL}"
LINEAR = f"hidden, linear_weight, targets, *, linear_bias=None, progress=False, {OPTIONS}, {REDUCTION}"
GRADIENT = "grad_output=None, out=None"
EVALUATION = f"top_k=(1, 5), {OPTIONS}"
COMPARISON = (
    "top_k=(5, 10), weight=None, sample_weight=None, ignore_index=-100, softcap=None, temperature=1.0, "
    "axis=-1"
)
HEAD = "linear_weight=None, linear_bias=None"
SIGNATURES = {
    "cross_entropy": LOSS,
    "cross_entropy_with_grad": f"{LOSS}, {GRADIENT}",
    "cross_entropy_with_grad_hess": (
        f"logits, targets, *, {SMOOTHED}, temperature=1.0, axis=-1, {REDUCTION}, out=None, hess_out=None"
    ),
    "cross_entropy_hvp": (
        f"logits, targets, vector, *, {SMOOTHED}, z_loss=0.0, temperature=1.0, axis=-1, "
        f"{REDUCTION}, {GRADIENT}"
    ),
    "cross_entropy_target_grad": (
        "logits, targets, *, weight=None, sample_weight=None, label_smoothing=0.0, temperature=1.0, "
        f"axis=-1, {REDUCTION}, {GRADIENT}"
    ),
    "cross_entropy_temperature_grad": (
        f"logits, targets, *, {SMOOTHED}, z_loss=0.0, softcap=None, temperature=1.0, axis=-1, {REDUCTION}"
    ),
    "linear_cross_entropy": LINEAR,
    "linear_cross_entropy_with_grad": f"{LINEAR}, {GRADIENT}",
    "cross_entropy_grad": (
        f"logits, targets, *, lse, class_offset=0, num_classes=None, {SMOOTHED}, z_loss=0.0, softcap=None, "
        f"temperature=1.0, axis=-1, {REDUCTION}, {GRADIENT}"
    ),
    "binary_cross_entropy": BINARY,
    "binary_cross_entropy_with_grad": f"{BINARY}, {GRADIENT}",
    "binary_cross_entropy_with_grad_hess": (
        f"logits, targets, *, {SMOOTHED_BINARY}, {REDUCTION}, out=None, hess_out=None"
    ),
    "kl_divergence": KL,
    "kl_divergence_with_grad": f"{KL}, {GRADIENT}",
    "kl_divergence_hvp": f"logits, target_logits, vector, *, {FORWARD_KL}, {GRADIENT}",
    "selective_log_softmax": "logits, index, *, axis=-1, temperature=1.0",
    "row_statistics": ("logits, targets=None, *, axis=-1, softcap=None, temperature=1.0, ignore_index=-100"),
    "partial_row_statistics": (
        "logits, targets=None, *, class_offset, num_classes, target_logit=None, "
        "axis=-1, softcap=None, temperature=1.0, ignore_index=-100"
    ),
    "logsumexp": "logits, *, axis=-1, keepdims=False, temperature=1.0",
    "softmax": "logits, *, axis=-1, temperature=1.0, out=None",
    "log_softmax": "logits, *, axis=-1, temperature=1.0, out=None",
    "evaluate": f"logits, targets, *, {EVALUATION}, {HEAD}",
    "Evaluator": f"*, {EVALUATION.replace('sample_weight=None, ', '')}",
    "Evaluator.update": f"self, logits, targets, *, sample_weight=None, {HEAD}",
    "compare": f"reference, candidate, targets=None, *, {COMPARISON}, groups=None, {HEAD}",
    "Comparer": f"*, {COMPARISON.replace('sample_weight=None, ', '')}",
    "Comparer.update": (
        f"self, reference, candidate, targets=None, *, sample_weight=None, groups=None, {HEAD}"
    ),
    "get_num_threads": "",
    "release_memory": "",
    "show_config": "",
    "probability.self_information": f"p, *, base={math.e}",
    "probability.entropy": f"p, *, axis=-1, base={math.e}",
    "probability.cross_entropy": f"p, q, *, axis=-1, base={math.e}",
    "probability.kl_divergence": f"p, q, *, axis=-1, base={math.e}",
    "probability.binary_cross_entropy": f"p, targets, *, reduction='mean', base={math.e}",
}


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items(), ids=SIGNATURES)
def test_signature(name, expected):
    signature = inspect.signature(operator.attrgetter(name)(xent_rs))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == f"({expected})"


def test_public_names():
    others = {"Evaluation", "InternalError", "RowStatistics", "probability", "set_num_threads", "__version__"}
    others |= {"LinearGradients", "RowState", "SparseTargets"}
    others |= {"ComparedModel", "Comparison", "Estimate", "GroupComparison"}
    assert {name for name in SIGNATURES if "." not in name} | others == set(xent_rs.__all__)
    probability = {f"probability.{name}" for name in xent_rs.probability.__all__}
    assert probability == {name for name in SIGNATURES if name.startswith("probability.")}
    assert all(hasattr(xent_rs, name) for name in xent_rs.__all__)


@pytest.fixture
def mypy(tmp_path_factory):
    """Run a module of mypy, away from the configuration of this repository, with one cache for all tests."""

    def run(*arguments):
        directory = tmp_path_factory.getbasetemp() / "mypy"
        directory.mkdir(exist_ok=True)
        finished = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr

    return run


@pytest.mark.exhaustive
def test_stub_of_the_compiled_module_is_true(mypy):
    mypy("mypy.stubtest", "xent_rs._xent_rs")


WRAPPERS = Path(__file__).with_name("typing_wrappers.py")


@pytest.mark.exhaustive
def test_types_that_callers_see(mypy):
    mypy("mypy", "--strict", "--warn-unused-ignores", str(WRAPPERS))


LOGITS = np.random.default_rng(7).standard_normal((5, 8))
TARGETS = np.array([0, 3, 7, 2, 2])
# What the second argument is, if it is not a class each.
SECOND = {
    "binary_cross_entropy": LOGITS > 0,
    "binary_cross_entropy_with_grad": LOGITS > 0,
    "binary_cross_entropy_with_grad_hess": LOGITS > 0,
    "kl_divergence": LOGITS[::-1],
    "kl_divergence_with_grad": LOGITS[::-1],
    "kl_divergence_hvp": LOGITS[::-1],
    "cross_entropy_target_grad": np.abs(LOGITS),
    "selective_log_softmax": TARGETS[:, None],
}
# What takes other arguments, or some that have no defaults, is in tests of its own.
OTHERS = (
    "partial_row_statistics",
    "cross_entropy_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
)
WITH_OPTIONS = {
    name: {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(xent_rs, name)).parameters.values()
        if parameter.kind == parameter.KEYWORD_ONLY
    }
    for name in SIGNATURES
    if "*" in SIGNATURES[name] and "." not in name and name not in OTHERS
}
ALL_OPTIONS = sorted({option for options in WITH_OPTIONS.values() for option in options})


def call(name, **options):
    function = getattr(xent_rs, name)
    if name in ("Evaluator", "Comparer"):
        return function(**options)
    if name == "compare":
        return function(LOGITS, LOGITS[::-1], TARGETS, **options)
    if name in ("softmax", "log_softmax", "logsumexp"):
        return function(LOGITS, **options)
    vectors = [LOGITS[:, ::-1]] if name.endswith("_hvp") else []
    return function(LOGITS, SECOND.get(name, TARGETS), *vectors, **options)


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_defaults_in_signatures_are_what_is_computed_with(name):
    """Each option given its default, and all at once, change no bit."""
    expected = call(name)
    for options in (
        {},
        WITH_OPTIONS[name],
        *({option: value} for option, value in WITH_OPTIONS[name].items()),
    ):
        got = call(name, **options)
        if name in ("Evaluator", "Comparer"):
            assert repr(got) == repr(expected)
        else:
            assert same_bits(got, expected), options


def same_bits(a, b):
    if isinstance(a, tuple):
        return all(map(same_bits, a, b))
    if isinstance(a, np.ndarray):
        return a.tobytes() == b.tobytes()
    return a == b


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_options_of_other_functions_are_refused(name):
    """Python's own words; a name that is nearly right is suggested."""
    for option in ALL_OPTIONS:
        if option not in WITH_OPTIONS[name]:
            text = f"{name}() got an unexpected keyword argument '{option}'"
            with pytest.raises(TypeError, match=re.escape(text)):
                call(name, **{option: None})
    for option in WITH_OPTIONS[name]:
        mistyped = option[1:2] + option[:1] + option[2:]  # lable
        text = f"{name}() got an unexpected keyword argument '{mistyped}'. Did you mean '{option}'?"
        with pytest.raises(TypeError, match=re.escape(text)):
            call(name, **{mistyped: 1})
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'λ'$"):
        call(name, **{"λ": 1})


def test_an_unknown_option_is_said_before_any_work():
    out = np.full(LOGITS.shape, 7.0)
    with pytest.raises(TypeError, match="lable_smoothing"):
        xent_rs.cross_entropy_with_grad(LOGITS, TARGETS, out=out, lable_smoothing=0.1)
    assert (out == 7).all()


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_options_are_keywords(name):
    others = {"Evaluator": 1, "Comparer": 1, "softmax": 1, "log_softmax": 1, "logsumexp": 1, "compare": 3}
    given = others.get(name, 3 if name.endswith("_hvp") else 2)
    with pytest.raises(TypeError, match=rf"takes .*{given} positional arguments? but {given + 1} were given"):
        getattr(xent_rs, name)(*[LOGITS] * (given + (name not in ("Evaluator", "Comparer"))))


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_none_is_an_option_only_where_it_is_the_default(name):
    for option, default in WITH_OPTIONS[name].items():
        if default is None:
            call(name, **{option: None})
        elif option != "keepdims":
            with pytest.raises((TypeError, ValueError), match=rf"^{option} is None; expected "):
                call(name, **{option: None})


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_documentation_has_each_option_once_in_the_order_of_the_signature(name):
    text = inspect.getdoc(getattr(xent_rs, name))
    section = re.search(r"^Parameters\n-+\n(.*?)^(Returns|Raises)\n-+\n", text, re.MULTILINE | re.DOTALL)[1]
    entries = re.findall(r"^(\w[\w, ]*) : .+\n(?:    .+\n)+", section, re.MULTILINE)
    assert [entry for entry in ", ".join(entries).split(", ") if entry in WITH_OPTIONS[name]] == [
        *WITH_OPTIONS[name]
    ]
    assert "**options" not in text


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_functions_are_plain_functions_for_tools(name):
    function = getattr(xent_rs, name)
    assert pickle.loads(pickle.dumps(function)) is function
    shown = pydoc.plain(pydoc.render_doc(function))
    for option, default in WITH_OPTIONS[name].items():
        assert re.search(rf"\b{option}: '[^']+' = {re.escape(repr(default))}[,)]", shown), option
    if name not in ("Evaluator", "Comparer"):
        assert typing.get_type_hints(function)["reference" if name == "compare" else "logits"]
        first = next(iter(WITH_OPTIONS[name]))
        changed = functools.partial(function, **{first: 0})
        assert inspect.signature(changed).parameters[first].default == 0
        assert inspect.getfullargspec(function).kwonlydefaults == WITH_OPTIONS[name]


def test_a_wrapper_keeps_the_signature():
    @functools.wraps(xent_rs.cross_entropy)
    def timed(*arguments, **options):
        return xent_rs.cross_entropy(*arguments, **options)

    assert inspect.signature(timed) == inspect.signature(xent_rs.cross_entropy)
    bound = inspect.signature(timed).bind(LOGITS, TARGETS, axis=1)
    assert bound.arguments["axis"] == 1


# What has a result of the logits' shape, whatever becomes of the losses.
WRITTEN = ("cross_entropy_hvp", "cross_entropy_target_grad", "kl_divergence_hvp")
REDUCED = [name for name in WITH_OPTIONS if "reduction" in WITH_OPTIONS[name] and name not in WRITTEN]


@pytest.mark.parametrize("name", REDUCED)
def test_one_row_without_reduction_is_an_array_of_no_dimensions(name):
    second = SECOND.get(name, TARGETS)
    row = (0.5, True) if "binary" in name else (LOGITS[0], second[0])
    result = getattr(xent_rs, name)(*row, reduction="none")
    loss = result[0] if isinstance(result, tuple) else result
    assert isinstance(loss, np.ndarray)
    assert (loss.shape, loss.dtype) == ((), np.float64)


def test_results_of_one_row_are_arrays():
    statistics = xent_rs.row_statistics(LOGITS[0], 3)
    of_probabilities = xent_rs.probability
    p = np.full(8, 0.125)
    for result in (
        *statistics,
        xent_rs.logsumexp(LOGITS[0]),
        of_probabilities.self_information(0.5),
        of_probabilities.entropy(p),
        of_probabilities.cross_entropy(p, p),
        of_probabilities.kl_divergence(p, p),
        of_probabilities.binary_cross_entropy(0.5, 1, reduction="none"),
    ):
        assert isinstance(result, np.ndarray)
        assert result.shape == ()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8, np.uint64])
def test_numbers_of_numpy_are_numbers(kind):
    expected = xent_rs.cross_entropy(
        LOGITS, TARGETS, temperature=2, label_smoothing=1, softcap=3, denominator=5
    )
    options = {"temperature": kind(2), "label_smoothing": kind(1), "softcap": kind(3), "denominator": kind(5)}
    assert xent_rs.cross_entropy(LOGITS, TARGETS, **options) == expected
    if np.dtype(kind).kind in "iu":
        options = {"axis": kind(1), "ignore_index": kind(2)}
        assert xent_rs.cross_entropy(LOGITS, TARGETS, **options) == xent_rs.cross_entropy(
            LOGITS, TARGETS, axis=1, ignore_index=2
        )
