"""The numbers that other packages give, where their meaning is ours.

ONNX, SciPy and scikit-learn are installed with the tests; optax and PyTorch take part where they are present.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.special
import scipy.stats
import xent_rs
from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss
from sklearn.metrics import log_loss

from .combinations import pairwise

# --- ONNX: the data and the expected results of its own conformance tests, at 1e-5 instead of their 1e-3 ---

# In a process of its own, as it fills a list of the package; from few modules, as all of them take long.
COLLECT = """
import importlib, pickle, pkgutil, sys, warnings
warnings.simplefilter("ignore")
from onnx import helper
from onnx.backend.test.case import node
names = [name for _, name, _ in pkgutil.iter_modules(node.__path__)]
names = [f"{node.__name__}.{name}" for name in names if "softmax" in name or "likelihood" in name]
node.import_recursive = lambda package: [importlib.import_module(name) for name in names]
cases = []
for case in node.collect_testcases(None):
    first = case.model.graph.node[0]
    attributes = {item.name: helper.get_attribute_value(item) for item in first.attribute}
    if not case.name.endswith("_expanded"):
        cases += [(first.op_type, case.name, attributes, *data) for data in case.data_sets]
sys.stdout.buffer.write(pickle.dumps(cases))
"""


@pytest.fixture(scope="module")
def onnx_cases():
    """Of an operator, at least so many: [(name, attributes, inputs, outputs)]."""
    finished = subprocess.run([sys.executable, "-c", COLLECT], capture_output=True, check=True, timeout=100)
    cases = pickle.loads(finished.stdout)

    def of(operator, least):
        found = [case for name, *case in cases if name == operator]
        assert len(found) >= least
        return found

    return of


def loss_options(attributes, inputs):
    weight = inputs[2] if len(inputs) > 2 else None
    ignore_index = attributes.get("ignore_index", -100)
    reduction = attributes.get("reduction", b"mean").decode()
    return {"weight": weight, "ignore_index": ignore_index, "reduction": reduction, "axis": 1}


def test_onnx_softmax_cross_entropy_loss(onnx_cases):
    for name, attributes, inputs, (expected, *log_probabilities) in onnx_cases("SoftmaxCrossEntropyLoss", 34):
        logits, targets = inputs[:2]
        found = xent_rs.cross_entropy(logits, targets, **loss_options(attributes, inputs))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0, err_msg=name)
        for log_probability in log_probabilities:
            found = xent_rs.log_softmax(logits, axis=1)
            np.testing.assert_allclose(found, log_probability, rtol=1e-5, atol=1e-6, err_msg=name)


def test_onnx_negative_log_likelihood_loss(onnx_cases):
    """-w_y x_y. Of log-probabilities it is our loss; of numbers that are none, less their logsumexp."""
    for name, attributes, inputs, (expected,) in onnx_cases("NegativeLogLikelihoodLoss", 18):
        numbers, targets = inputs[:2]
        options = loss_options(attributes, inputs)
        counts = targets != options["ignore_index"]
        weight = np.ones(numbers.shape[1]) if options["weight"] is None else options["weight"]
        weights = np.where(counts, weight[np.where(counts, targets, 0)], 0)
        surplus = weights * xent_rs.logsumexp(numbers, axis=1)
        if options["reduction"] != "none":
            surplus = surplus.sum() / (weights.sum() if options["reduction"] == "mean" else 1)
        found = xent_rs.cross_entropy(numbers, targets, **options) - surplus
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)

        index = np.where(counts, targets, 0)
        found = -xent_rs.selective_log_softmax(numbers, index[..., None], axis=1)[..., 0]
        rows = np.where(counts, weights * (found - xent_rs.logsumexp(numbers, axis=1)), 0)
        total = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / weights.sum()}[options["reduction"]]
        np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("operator", "function"), [("Softmax", xent_rs.softmax), ("LogSoftmax", xent_rs.log_softmax)]
)
def test_onnx_softmax(operator, function, onnx_cases):
    for name, attributes, (logits,), (expected,) in onnx_cases(operator, 7):
        found = function(logits, axis=attributes.get("axis", -1))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


# --- SciPy ---


@pytest.fixture
def logits(random):
    return 4 * random.standard_normal((40, 7))


@pytest.mark.parametrize("axis", [0, 1])
def test_scipy_softmax(axis, logits):
    for name in ("softmax", "log_softmax", "logsumexp"):
        expected = getattr(scipy.special, name)(logits, axis=axis)
        np.testing.assert_allclose(
            getattr(xent_rs, name)(logits, axis=axis), expected, rtol=1e-13, atol=1e-15
        )


def test_scipy_entropies(logits, random):
    teacher = 3 * random.standard_normal(logits.shape)
    p, q = scipy.special.softmax(teacher, axis=1), scipy.special.softmax(logits, axis=1)
    expected = scipy.stats.entropy(p, q, axis=1)
    np.testing.assert_allclose(xent_rs.kl_divergence(logits, teacher, reduction="none"), expected, rtol=1e-12)
    np.testing.assert_allclose(scipy.special.rel_entr(p, q).sum(axis=1), expected, rtol=1e-12)
    found = xent_rs.row_statistics(teacher)
    np.testing.assert_allclose(found.entropy, scipy.stats.entropy(p, axis=1), rtol=1e-12)
    cross = xent_rs.cross_entropy(logits, p, reduction="none")
    np.testing.assert_allclose(cross, expected + scipy.stats.entropy(p, axis=1), rtol=1e-12)


def test_scipy_sigmoid(logits, random):
    targets = random.random(logits.shape)
    losses, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction="none")
    expected = -targets * scipy.special.log_expit(logits) - (1 - targets) * scipy.special.log_expit(-logits)
    np.testing.assert_allclose(losses, expected, rtol=1e-13)
    np.testing.assert_allclose(grad, scipy.special.expit(logits) - targets, rtol=1e-12, atol=1e-15)


# --- scikit-learn ---


@pytest.mark.parametrize("weighted", [False, True])
def test_sklearn_log_loss(weighted, logits, random):
    targets, weights = random.integers(0, 7, 40), random.random(40) if weighted else None
    p = scipy.special.softmax(logits, axis=1)
    expected = log_loss(targets, p, labels=range(7), sample_weight=weights)
    assert xent_rs.cross_entropy(logits, targets, sample_weight=weights) == pytest.approx(expected, rel=1e-13)
    expected = log_loss(targets % 2, p[:, :2] / p[:, :2].sum(axis=1, keepdims=True), sample_weight=weights)
    found = xent_rs.cross_entropy(logits[:, :2], targets % 2, sample_weight=weights)
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sklearn_half_multinomial_loss(weighted, dtype, logits, random):
    """Loss, gradient and the diagonal of the Hessian, as gradient boosting takes them."""
    logits, targets = logits.astype(dtype), random.integers(0, 7, 40)
    weights = random.random(40).astype(dtype) if weighted else None
    peer, y = HalfMultinomialLoss(n_classes=7, sample_weight=weights), targets.astype(dtype)
    losses, grad, hess = xent_rs.cross_entropy_with_grad_hess(
        logits, targets, sample_weight=weights, reduction="none"
    )
    digits = {"rtol": 1e-4, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-14}
    np.testing.assert_allclose(losses, peer.loss(y, logits, weights), **digits)
    expected_grad, expected_hess = peer.gradient_hessian(y, logits, weights)
    np.testing.assert_allclose(grad, expected_grad, **digits)
    np.testing.assert_allclose(hess, expected_hess, **digits)
    assert xent_rs.cross_entropy(logits, targets, sample_weight=weights) == pytest.approx(
        peer(y, logits, weights), rel=digits["rtol"]
    )


def test_sklearn_half_binomial_loss(random):
    """Also as two classes, the first with the logit 0: the Hessian of the second is the binary one."""
    logits, targets, weights = 5 * random.standard_normal(50), random.random(50).round(), random.random(50)
    peer = HalfBinomialLoss(sample_weight=weights)
    losses, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, weight=weights, reduction="none")
    np.testing.assert_allclose(losses, peer.loss(targets, logits, weights), rtol=1e-12, atol=1e-15)
    expected, curvature = peer.gradient_hessian(targets, logits, weights)
    np.testing.assert_allclose(grad, expected, rtol=1e-11, atol=1e-15)
    _, grad, hess = xent_rs.cross_entropy_with_grad_hess(
        np.stack([0 * logits, logits], axis=1), targets.astype(int), sample_weight=weights, reduction="none"
    )
    np.testing.assert_allclose(grad[:, 1], expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(hess[:, 1], curvature, rtol=1e-11)


# --- optax ---


@pytest.fixture
def optax():
    pytest.importorskip("jax").config.update("jax_enable_x64", True)
    return pytest.importorskip("optax")


def value_and_grad(function, logits):
    import jax

    losses = np.asarray(function(logits))
    return losses, np.asarray(jax.grad(lambda x: function(x).sum())(jax.numpy.asarray(logits)))


def test_optax(optax, logits, random):
    from jax.nn import log_softmax

    targets = random.integers(0, 7, 40)
    soft = scipy.special.softmax(random.standard_normal(logits.shape), axis=1)
    teacher, multi = 3 * random.standard_normal(logits.shape), random.integers(0, 2, logits.shape)
    cases = [
        (
            lambda x: optax.softmax_cross_entropy_with_integer_labels(x, targets),
            xent_rs.cross_entropy_with_grad(logits, targets, reduction="none"),
        ),
        (
            lambda x: optax.softmax_cross_entropy(x, soft),
            xent_rs.cross_entropy_with_grad(logits, soft, reduction="none"),
        ),
        (
            lambda x: optax.softmax_cross_entropy(x, optax.smooth_labels(np.eye(7)[targets], 0.1)),
            xent_rs.cross_entropy_with_grad(logits, targets, label_smoothing=0.1, reduction="none"),
        ),
        (
            lambda x: optax.softmax_cross_entropy(x.T, soft.T, axis=0),
            xent_rs.cross_entropy_with_grad(logits, soft, reduction="none"),
        ),
        (
            lambda x: optax.sigmoid_binary_cross_entropy(x, multi),
            xent_rs.binary_cross_entropy_with_grad(logits, multi, reduction="none"),
        ),
        (
            lambda x: optax.losses.kl_divergence(log_softmax(x), scipy.special.softmax(teacher, axis=1)),
            xent_rs.kl_divergence_with_grad(logits, teacher, reduction="none"),
        ),
    ]
    for number, (peer, (losses, grad)) in enumerate(cases):
        expected, expected_grad = value_and_grad(peer, logits)
        np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=1e-13, err_msg=str(number))
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-10, atol=1e-13, err_msg=str(number))


# --- PyTorch ---


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


TORCH = {
    "target": ["class", "probabilities"],
    "weight": [False, True],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 0.3],
    "softcap": [None, 2.0],
    "temperature": [1.0, 0.7],
    "reduction": ["mean", "sum", "none"],
    "shape": [(9, 7), (4, 7, 3)],
}


@pytest.mark.parametrize("case", pairwise(TORCH), ids=lambda case: " ".join(map(str, case.values())))
def test_torch_cross_entropy(case, torch, random):
    """Its options, and those that it lacks composed of its operations, with gradients by autograd."""
    shape, reduction = case["shape"], case["reduction"]
    logits = 3 * random.standard_normal(shape)
    targets = random.random(shape)
    if case["target"] == "class":
        targets = targets.argmax(axis=1)
        targets[random.random(targets.shape) < 0.2] = -100
    weight = random.random(7) if case["weight"] else None
    grad_output = random.standard_normal(np.delete(shape, 1)) if reduction == "none" else None

    leaf = torch.tensor(logits, requires_grad=True)
    z = leaf if case["softcap"] is None else case["softcap"] * torch.tanh(leaf / case["softcap"])
    z = z / case["temperature"]
    expected = torch.nn.functional.cross_entropy(
        z,
        torch.tensor(targets),
        weight=None if weight is None else torch.tensor(weight),
        label_smoothing=case["label_smoothing"],
        reduction=reduction,
    )
    counts = torch.tensor(
        targets != -100 if case["target"] == "class" else np.ones(np.delete(shape, 1), bool)
    )
    penalties = torch.where(counts, case["z_loss"] * torch.logsumexp(z, 1) ** 2, 0.0)
    divisor = counts.sum()
    if weight is not None and case["target"] == "class":
        divisor = weight[targets[targets != -100]].sum()
    expected = (
        expected + {"none": penalties, "sum": penalties.sum(), "mean": penalties.sum() / divisor}[reduction]
    )
    if grad_output is None:
        expected.backward()
    else:
        expected.backward(torch.tensor(grad_output))

    options = {
        name: case[name] for name in ("label_smoothing", "z_loss", "softcap", "temperature", "reduction")
    }
    loss, grad = xent_rs.cross_entropy_with_grad(
        logits, targets, weight=weight, axis=1, grad_output=grad_output, **options
    )
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torch_binary_cross_entropy(reduction, torch, logits, random):
    targets, pos_weight, weight = random.random(logits.shape), 3 * random.random(7), random.random((40, 1))
    for options in (
        {},
        {"weight": weight},
        {"pos_weight": pos_weight},
        {"weight": weight, "pos_weight": pos_weight},
    ):
        leaf = torch.tensor(logits, requires_grad=True)
        tensors = {name: torch.tensor(value) for name, value in options.items()}
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            leaf, torch.tensor(targets), reduction=reduction, **tensors
        )
        expected.sum().backward()
        loss, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction=reduction, **options)
        np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-13)
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_torch_kl_divergence(temperature, torch, logits, random):
    """Its "batchmean" is our mean."""
    teacher, leaf = 3 * random.standard_normal(logits.shape), torch.tensor(logits, requires_grad=True)
    log_p, log_q = (torch.log_softmax(x / temperature, 1) for x in (leaf, torch.tensor(teacher)))
    expected = torch.nn.functional.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    expected.backward()
    loss, grad = xent_rs.kl_divergence_with_grad(logits, teacher, temperature=temperature)
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_torch_hessian(torch, random):
    logits, targets, weight = random.standard_normal((3, 4)), np.array([0, 3, 1]), random.random(4)

    def loss(x):
        return torch.nn.functional.cross_entropy(
            x, torch.tensor(targets), torch.tensor(weight), label_smoothing=0.1
        )

    expected = torch.autograd.functional.hessian(loss, torch.tensor(logits)).numpy()
    diagonal = expected.reshape(12, 12).diagonal().reshape(3, 4)
    found = xent_rs.cross_entropy_with_grad_hess(logits, targets, weight=weight, label_smoothing=0.1)[2]
    np.testing.assert_allclose(found, diagonal, rtol=1e-12)


def test_torch_edge_cases_that_are_ours_too(torch):
    """What its documentation leaves open and users rely on."""
    cross_entropy = torch.nn.functional.cross_entropy
    logits = np.array([[1.0, -np.inf, 2.0], [0, 0, 0]])
    for targets, options in (
        (np.array([0, 1]), {}),
        (np.array([1, 1]), {}),
        (np.array([0, 1]), {"label_smoothing": 0.1}),
        (np.array([-100, -100]), {}),
        (np.array([0, -100]), {"label_smoothing": 1.0}),
    ):
        expected = cross_entropy(torch.tensor(logits), torch.tensor(targets), **options).item()
        np.testing.assert_allclose(xent_rs.cross_entropy(logits, targets, **options), expected, rtol=1e-14)
