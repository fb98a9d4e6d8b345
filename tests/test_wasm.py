"""The kernels in JavaScript (kernels.js, kernels.wasm): bits, errors, and what the module exports.

WebAssembly's vectors have no fused multiply-add, as those of the portable level: both have the same bits.
Where there is no such level the results are compared within a few units in the last place.
"""

import base64
import importlib.resources
import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs

ROOT = Path(__file__).parent.parent
FOLDER = importlib.resources.files("xent_rs") / "explore"
NODE = shutil.which("node")
INF, NAN = math.inf, math.nan

needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed: nothing runs kernels.wasm")

TYPES = {
    "float64": "Float64Array",
    "float32": "Float32Array",
    "int32": "Int32Array",
    "uint8": "Uint8Array",
    "int64": "BigInt64Array",
}
DTYPES = {name: dtype for dtype, name in TYPES.items()}
CAMEL = re.compile(r"_([a-z])")


def camel(name):
    """The name of an option in JavaScript."""
    return CAMEL.sub(lambda match: match[1].upper(), name)


def encode(value):
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"type": TYPES[value.dtype.name], "bytes": data}
    if isinstance(value, float):
        return {"type": "number", "bytes": base64.b64encode(np.float64(value).tobytes()).decode()}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return [encode(item) for item in value] if isinstance(value, list) else value


def decode(value):
    if value is None:
        return None
    if "bytes" not in value:
        return {key: decode(item) for key, item in value.items()}
    data = base64.b64decode(value["bytes"])
    if value["type"] == "number":
        return np.frombuffer(data, np.float64)[0]
    return np.frombuffer(data, DTYPES[value["type"]])


@pytest.fixture(scope="session")
def javascript(tmp_path_factory):
    """Make calls (name, arguments...) in one run of Node.js; return the results, or (error, message)."""
    script = tmp_path_factory.mktemp("kernels") / "kernels.mjs"
    script.write_bytes((FOLDER / "kernels.js").read_bytes())

    def run(*calls):
        given = {
            "script": script.as_uri(),
            "wasm": str(FOLDER / "kernels.wasm"),
            "calls": [[name, encode(list(values))] for name, *values in calls],
        }
        command = [NODE, str(ROOT / "tests" / "run_kernels.mjs")]
        finished = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, timeout=100, check=False
        )
        assert finished.returncode == 0, finished.stderr
        found = json.loads(finished.stdout)
        return [decode(it["result"]) if "result" in it else (it["error"], it["message"]) for it in found]

    return run


@pytest.fixture(autouse=True)
def _portable():
    if "portable" in _xent_rs.simd_levels():
        _xent_rs.set_simd_level("portable")


def same(found, expected, case):
    """Check that numbers have the same bits; any NaN is as good as another."""
    found, expected = np.atleast_1d(found), np.atleast_1d(expected)
    assert found.shape == expected.shape, case
    assert found.dtype == expected.dtype, case
    if _xent_rs.simd_level() != "portable":
        unit = np.finfo(found.dtype).eps / 2
        np.testing.assert_allclose(found, expected, rtol=64 * unit, atol=16 * unit, err_msg=case)
        return
    bits = f"u{found.dtype.itemsize}"
    differ = (found.view(bits) != expected.view(bits)) & ~(np.isnan(found) & np.isnan(expected))
    places = np.flatnonzero(differ)[:3]
    assert not len(places), f"{case}: {found[places]}, expected {expected[places]}, at {places}"


def some_logits(random, rows, classes, dtype):
    """Ordinary rows, confident ones, and some with masked classes."""
    logits = random.normal(0, 4, (rows, classes))
    logits[::5] *= 30
    logits[3::7, ::3] = -INF
    return logits.astype(dtype)


def some_probabilities(random, rows, classes):
    return random.dirichlet(np.ones(classes), rows)


SHAPES = [(17, 1), (33, 2), (9, 3), (20, 10), (3, 127), (3, 128), (4, 255), (2, 256), (2, 1000), (1, 5000)]
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def options_of(random, classes):
    """Options of the softmax losses, those for class indices alone last."""
    weight = random.uniform(0.1, 3, classes)
    some = {"weight": weight, "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "temperature": 0.7}
    yield from ({name: value} for name, value in some.items())
    yield {}
    yield some
    yield {"weight": np.where(np.arange(classes) % 2, weight, 0), "label_smoothing": 0.3, "temperature": 3.0}
    yield {"label_smoothing": 1.0}
    yield {"softcap": 30.0, "z_loss": 0.1}
    yield {"focal_gamma": 2.0}
    yield {"poly_epsilon": -0.5, "weight": weight}
    yield {"focal_gamma": 0.5, "poly_epsilon": 2.0, "softcap": 4.0, "temperature": 2.0, "z_loss": 0.01}


def in_javascript(options):
    return {camel(name): value for name, value in options.items()}


def compare_rows(javascript, cases):
    """Compare the losses and gradients of rows, each case (logits, targets, options)."""
    calls = [
        (
            "crossEntropyRows",
            logits.ravel(),
            np.ascontiguousarray(targets).ravel(),
            logits.shape[1],
            in_javascript(options),
        )
        for logits, targets, options in cases
    ]
    for found, (logits, targets, options) in zip(javascript(*calls), cases, strict=True):
        case = f"{logits.shape} {logits.dtype} {targets.dtype} {options}"
        assert isinstance(found, dict), f"{case}: {found}"
        losses, gradient = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none", **options)
        same(found["losses"], losses, case)
        same(found["gradient"], gradient.ravel(), case)


@needs_node
@dtypes
def test_classes(javascript, random, dtype):
    cases = []
    for rows, classes in SHAPES:
        logits = some_logits(random, rows, classes, dtype)
        targets = random.integers(0, classes, rows).astype("int32")
        targets[2::6] = -100
        cases += [(logits, targets, options) for options in options_of(random, classes)]
    compare_rows(javascript, cases)


@needs_node
@dtypes
@pytest.mark.parametrize("of_targets", ["float32", "float64"])
def test_probabilities(javascript, random, dtype, of_targets):
    cases = []
    for rows, classes in SHAPES:
        logits = some_logits(random, rows, classes, dtype)
        targets = some_probabilities(random, rows, classes).astype(of_targets)
        targets[::4, ::2] = 0
        options = [it for it in options_of(random, classes) if not {"focal_gamma", "poly_epsilon"} & set(it)]
        cases += [(logits, targets, it) for it in options]
    compare_rows(javascript, cases)


STATISTICS = [
    "logsumexp",
    "argmax",
    "max_probability",
    "entropy",
    "target_log_probability",
    "target_rank",
]

SPECIAL = [
    [17, 0, 0],
    [0, 0, 80],
    [3e38, 3e38, -3e38],
    [1, -INF, 1],
    [-INF, 3, -INF],
    [-INF, -INF, -INF],
    [0, NAN, 1],
    [0, INF, 1],
    [INF, INF, -INF],
    [-0.0, 0.0, -0.0],
    [1e-45, -1e-45, 0],
    [1e8, 1e8, 1e8],
]


@needs_node
@dtypes
def test_special_values(javascript, dtype):
    logits = np.array(SPECIAL, dtype)
    options = [{}, {"softcap": 2.0}, {"temperature": 0.5}, {"label_smoothing": 0.1}, {"z_loss": 0.1}]
    options += [{"focal_gamma": 2.0}, {"weight": np.array([1.0, 0.0, 2.0]), "label_smoothing": 0.2}]
    cases = [
        (logits, np.full(len(logits), target, "int32"), it)
        for target, it in itertools.product([0, 1, 2, -100], options)
    ]
    shares = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25]]
    cases += [(logits, np.tile(share, (len(logits), 1)), it) for share in shares for it in options[:5]]
    compare_rows(javascript, cases)


@needs_node
@dtypes
def test_one_row(javascript, random, dtype):
    """What is said of one row is what is said of it among others; lists are float64."""
    calls, expected = [], []
    for classes in (1, 2, 5, 300):
        logits = some_logits(random, 1, classes, dtype)[0]
        share = some_probabilities(random, 1, classes)[0]
        for target, options in [
            (classes - 1, {"temperature": 2.0}),
            (0, {}),
            (share, {"label_smoothing": 0.2}),
        ]:
            calls.append(("crossEntropy", logits, target, in_javascript(options)))
            expected.append(xent_rs.cross_entropy_with_grad(logits, target, reduction="none", **options))
    for found, (loss, gradient), call in zip(javascript(*calls), expected, calls, strict=True):
        same(found["loss"], np.float64(loss), str(call))
        same(found["gradient"], gradient, str(call))
    (found,) = javascript(("crossEntropy", [2.0, 1.0, 0.0], 0))
    loss, gradient = xent_rs.cross_entropy_with_grad([2.0, 1.0, 0.0], 0)
    same(found["loss"], loss, "a list")
    same(found["gradient"], gradient, "a list")


@needs_node
@dtypes
def test_softmax_and_statistics(javascript, random, dtype):
    rows = [some_logits(random, 1, classes, dtype)[0] for _, classes in SHAPES]
    rows += [np.array(row, dtype) for row in SPECIAL]
    calls, expected = [], []
    for row in rows:
        target = len(row) // 2
        for temperature in (1.0, 0.3):
            options = {"temperature": temperature}
            calls += [("softmax", row, options), ("logSoftmax", row, options)]
            expected += [xent_rs.softmax(row, **options), xent_rs.log_softmax(row, **options)]
        for options in ({}, {"temperature": 2.0, "softcap": 3.0}):
            calls += [("statistics", row, target, options), ("statistics", row)]
            expected += [xent_rs.row_statistics(row, target, **options), xent_rs.row_statistics(row)]
    for found, result, call in zip(javascript(*calls), expected, calls, strict=True):
        if isinstance(result, np.ndarray):
            same(found, result, str(call))
            continue
        for name in STATISTICS:
            number = getattr(result, name)
            if number is None:
                assert found[camel(name)] is None, call
            else:
                same(found[camel(name)], np.float64(number), f"{name} of {call}")


@needs_node
@dtypes
def test_binary(javascript, random, dtype):
    calls, expected = [], []
    for count in (1, 15, 300, 2000):
        logits = (random.normal(0, 5, count) * 10 ** random.uniform(-3, 1, count)).astype(dtype)
        logits[::50] = [INF, -INF, NAN, 0, -0.0, 1e30][count % 6]
        weights = {"weight": random.uniform(0, 2, count), "pos_weight": random.uniform(0.5, 4, count)}
        weights["weight"][::9] = 0
        for targets in (random.integers(0, 2, count).astype(dtype), random.uniform(0, 1, count)):
            for options in (
                {},
                {"label_smoothing": 0.2},
                {"focal_gamma": 2.0},
                weights,
                {"weight": 2.0, "pos_weight": 3.0},
                {**weights, "label_smoothing": 0.1, "focal_gamma": 0.5},
            ):
                calls.append(("binaryCrossEntropy", logits, targets, in_javascript(options)))
                result = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction="none", **options)
                expected.append(result)
    for found, (losses, gradient), call in zip(javascript(*calls), expected, calls, strict=True):
        same(found["losses"], losses, str(call))
        same(found["gradient"], gradient, str(call))


@needs_node
@dtypes
@pytest.mark.parametrize("of_teacher", ["float32", "float64"])
def test_divergence(javascript, random, dtype, of_teacher):
    calls, expected = [], []
    rows = [[some_logits(random, 1, classes, it)[0] for it in (dtype, of_teacher)] for _, classes in SHAPES]
    rows += [[np.array(row, dtype), np.array(row[::-1], of_teacher)] for row in SPECIAL]
    for (logits, teacher), temperature in itertools.product(rows, (1.0, 2.0, 0.1)):
        calls.append(("klDivergence", logits, teacher, {"temperature": temperature}))
        result = xent_rs.kl_divergence_with_grad(logits, teacher, temperature=temperature, reduction="none")
        expected.append(result)
    for found, (loss, gradient), call in zip(javascript(*calls), expected, calls, strict=True):
        same(found["loss"], np.float64(loss), str(call))
        same(found["gradient"], gradient, str(call))


@needs_node
def test_many_rows(javascript, random):
    """More than one chunk of rows, and more memory than the module begins with."""
    logits = random.normal(0, 3, (700, 1000)).astype("float32")
    compare_rows(javascript, [(logits, random.integers(0, 1000, 700).astype("int32"), {})] * 2)
    (found,) = javascript(("crossEntropyRows", np.zeros(0), np.zeros(0, "int32"), 3))
    assert len(found["losses"]) == len(found["gradient"]) == 0


# (error, what it says, the call)
ERRORS = [
    ("RangeError", "target is 2; expected an integer from 0 to 1", "crossEntropy", [1.0, 2.0], 2),
    ("RangeError", "target is -1; expected an integer from 0 to 1", "crossEntropy", [1.0, 2.0], -1),
    ("RangeError", "target is 0.5; expected an integer from 0 to 1", "crossEntropy", [1.0, 2.0], 0.5),
    ("TypeError", 'target is "0"; expected an array of numbers', "crossEntropy", [1.0, 2.0], "0"),
    (
        "RangeError",
        "target has length 1; expected 2, the length of logits",
        "crossEntropy",
        [1.0, 2.0],
        [1.0],
    ),
    (
        "RangeError",
        "target[1] is -0.5; expected a probability, at least 0",
        "crossEntropy",
        [1.0, 2.0],
        [1.5, -0.5],
    ),
    (
        "RangeError",
        "target[0] is NaN; expected a probability, at least 0",
        "crossEntropy",
        [1.0, 2.0],
        [NAN, 1.0],
    ),
    ("RangeError", "logits have length 0; expected at least one class", "crossEntropy", [], 0),
    ("TypeError", "logits are null; expected an array of numbers", "crossEntropy", None, 0),
    ("TypeError", 'logits are "12"; expected an array of numbers', "crossEntropy", "12", 0),
    ("TypeError", 'logits[1] is "2"; expected a number', "crossEntropy", [1.0, "2"], 0),
    (
        "TypeError",
        "logits are a BigInt64Array of length 2; expected an array of numbers",
        "crossEntropy",
        np.zeros(2, "int64"),
        0,
    ),
    ("TypeError", "unexpected option 'label_smoothing'", "crossEntropy", [1.0], 0, {"label_smoothing": 0.1}),
    ("TypeError", "options are 3; expected an object", "crossEntropy", [1.0], 0, 3),
    (
        "RangeError",
        "labelSmoothing is 1.5; expected a number from 0 to 1",
        "crossEntropy",
        [1.0],
        0,
        {"labelSmoothing": 1.5},
    ),
    (
        "TypeError",
        "labelSmoothing is null; expected a number from 0 to 1",
        "crossEntropy",
        [1.0],
        0,
        {"labelSmoothing": None},
    ),
    (
        "RangeError",
        "temperature is 0; expected a positive finite number",
        "crossEntropy",
        [1.0],
        0,
        {"temperature": 0.0},
    ),
    (
        "RangeError",
        "softcap is Infinity; expected a positive finite",
        "crossEntropy",
        [1.0],
        0,
        {"softcap": INF},
    ),
    ("TypeError", 'softcap is "5"; expected a positive finite', "crossEntropy", [1.0], 0, {"softcap": "5"}),
    (
        "RangeError",
        "zLoss is NaN; expected a finite number, at least 0",
        "crossEntropy",
        [1.0],
        0,
        {"zLoss": NAN},
    ),
    (
        "RangeError",
        "focalGamma is -1; expected a number from 0 to 1e100",
        "crossEntropy",
        [1.0],
        0,
        {"focalGamma": -1.0},
    ),
    (
        "RangeError",
        "polyEpsilon is Infinity; expected a finite",
        "crossEntropy",
        [1.0],
        0,
        {"polyEpsilon": INF},
    ),
    (
        "RangeError",
        "weight has length 2; expected 1, a number for each class",
        "crossEntropy",
        [1.0],
        0,
        {"weight": [1.0, 2.0]},
    ),
    (
        "RangeError",
        "focalGamma is 1 with probabilities as targets; expected class indices, whose probability",
        "crossEntropy",
        [1.0, 2.0],
        [0.5, 0.5],
        {"focalGamma": 1.0},
    ),
    (
        "RangeError",
        "polyEpsilon is 1 with labelSmoothing 0.1; expected one of them",
        "crossEntropy",
        [1.0],
        0,
        {"polyEpsilon": 1.0, "labelSmoothing": 0.1},
    ),
    ("RangeError", "targets[1] is 2; expected 0 to 1, or -100", "crossEntropyRows", np.zeros(4), [0, 2], 2),
    (
        "RangeError",
        "targets have length 1; expected 2, the number of rows",
        "crossEntropyRows",
        np.zeros(4),
        [0],
        2,
    ),
    ("RangeError", "targets[1] is 0.5; expected an integer", "crossEntropyRows", np.zeros(4), [0, 0.5], 2),
    (
        "RangeError",
        "targets have length 2; expected 4, the length of logits",
        "crossEntropyRows",
        np.zeros(4),
        np.zeros(2),
        2,
    ),
    ("RangeError", "logits have length 4; expected a multiple of 3", "crossEntropyRows", np.zeros(4), [0], 3),
    ("RangeError", "classes is 0; expected an integer, at least 1", "crossEntropyRows", np.zeros(4), [0], 0),
    (
        "TypeError",
        'classes is "4"; expected an integer, at least 1',
        "crossEntropyRows",
        np.zeros(4),
        [0],
        "4",
    ),
    ("TypeError", "softmax() got an unexpected option 'softcap'", "softmax", [1.0], {"softcap": 1.0}),
    ("RangeError", "logits have length 0; expected at least one class", "softmax", []),
    ("RangeError", "target is 2; expected an integer from 0 to 1", "statistics", [1.0, 2.0], 2),
    ("TypeError", "expected an integer from 0 to 1", "statistics", [1.0, 2.0], [1]),
    (
        "RangeError",
        "targets have length 2; expected 1, the length of logits",
        "binaryCrossEntropy",
        [1.0],
        [1.0, 0.0],
    ),
    (
        "RangeError",
        "targets[1] is 2; expected 0 or 1",
        "binaryCrossEntropy",
        [1.0, 1.0],
        np.array([1, 2], "int32"),
    ),
    (
        "RangeError",
        "polyEpsilon is 0.5; expected 0",
        "binaryCrossEntropy",
        [1.0],
        [1.0],
        {"polyEpsilon": 0.5},
    ),
    ("TypeError", 'posWeight is "2"; expected', "binaryCrossEntropy", [1.0], [1.0], {"posWeight": "2"}),
    (
        "RangeError",
        "targetLogits have length 2; expected 1, the length of logits",
        "klDivergence",
        [1.0],
        [1.0, 2.0],
    ),
]


@needs_node
def test_errors(javascript):
    found = javascript(*(call for _, _, *call in ERRORS))
    for result, (error, message, *call) in zip(found, ERRORS, strict=True):
        assert isinstance(result, tuple), f"{call}: {result}"
        assert result[0] == error, f"{call}: {result}"
        assert message in result[1], f"{call}: {result}"


def interface():
    """The names that src/javascript.rs exports, and how many parameters each has."""
    source = (ROOT / "src" / "javascript.rs").read_text(encoding="utf-8")
    found = re.findall(r'#\[unsafe\(no_mangle\)\]\npub (?:unsafe )?extern "C" fn (\w+)\(([^)]*)\)', source)
    return {name: len(re.findall(r"\w+: ", parameters)) for name, parameters in found}


@needs_node
def test_module_is_that_of_the_sources():
    """It exports the functions that the sources have, with as many parameters, and imports nothing."""
    program = """
    const module = new WebAssembly.Module(require("fs").readFileSync(process.argv[1]));
    const { exports } = new WebAssembly.Instance(module);
    const functions = Object.entries(exports).filter(([, value]) => typeof value === "function");
    const names = Object.keys(exports).sort();
    const imports = WebAssembly.Module.imports(module).length;
    const lengths = Object.fromEntries(functions.map(([name, { length }]) => [name, length]));
    console.log(JSON.stringify([lengths, names, imports]));
    """
    command = [NODE, "-e", program, str(FOLDER / "kernels.wasm")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    functions, names, imports = json.loads(finished.stdout)
    assert len(interface()) > 5
    assert functions == interface(), "kernels.wasm is of other sources: python scripts/wasm.py"
    # The linker adds two numbers of its own.
    assert set(names) == {"memory", "__data_end", "__heap_base", *interface()}
    assert imports == 0


def test_module_does_not_grow():
    assert (FOLDER / "kernels.wasm").stat().st_size < 3 * 2**20


@needs_node
def test_example_of_the_readme(tmp_path):
    """What the comment on its last line says is what it prints."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- javascript: example -->\n```js\n(.*?)```", readme, re.DOTALL)[1]
    (tmp_path / "kernels.mjs").write_bytes((FOLDER / "kernels.js").read_bytes())
    wasm = json.dumps(str(FOLDER / "kernels.wasm"))
    source = block.replace("./kernels.js", "./kernels.mjs").replace("load()", f"load(readFileSync({wasm}))")
    program = tmp_path / "example.mjs"
    program.write_text('import { readFileSync } from "node:fs";\n' + source, encoding="utf-8")
    command = [NODE, str(program)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == block.strip().rpartition("// ")[2]
