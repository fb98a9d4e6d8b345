"""The objectives of XGBoost and LightGBM: their own trees without options, the formulas with them."""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import xent_rs
from xent_rs.boosting import lightgbm_objective, prior, xgboost_objective

ROWS, FEATURES, CLASSES, ROUNDS = 600, 6, 4, 6
MARGINS = {"multi": (ROWS, CLASSES), "binary": (ROWS,)}


@pytest.fixture(scope="module")
def xgb():
    return pytest.importorskip("xgboost", "3.2", reason="there is no XGBoost 3.2: pip install xgboost")


@pytest.fixture(scope="module")
def lgb():
    pytest.importorskip("sklearn", reason="LGBMClassifier needs scikit-learn: pip install scikit-learn")
    return pytest.importorskip("lightgbm", reason="LightGBM is not installed: pip install lightgbm")


class Problem:
    """Rows of a class that depends on them, with noise; class 0 is rare, so that start values matter."""

    def __init__(self, kind, weighted):
        random = np.random.default_rng(0)
        x = random.standard_normal((2 * ROWS, FEATURES)).astype(np.float32)
        scores = 2 * x @ random.standard_normal((FEATURES, CLASSES)) + random.gumbel(size=(2 * ROWS, CLASSES))
        scores[:, 0] -= 2
        y = scores.argmax(axis=1)
        self.classes = CLASSES if kind == "multi" else 1
        y = y if kind == "multi" else (y == 1).astype(int)
        (self.x, x_validation), (self.y, y_validation) = np.split(x, 2), np.split(y, 2)
        self.validation = x_validation, y_validation
        self.weight = random.uniform(0.2, 3, ROWS).astype(np.float32) if weighted else None

    def prior(self):
        return prior(self.y, self.classes, self.weight)

    def share(self):
        return float(np.average(self.y, weights=self.weight))


@pytest.fixture(params=["multi", "binary"])
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def problem(request, kind):
    return Problem(kind, request.param)


# --- The trees of the libraries' own objectives ---

# Margins are float32 in XGBoost, and the derivatives that the libraries' own objectives have are rounded to
# float32 at other places than ours: 6 rounds of some roundings of 6e-8 each, of numbers up to 10.
ROUNDED = {"rtol": 1e-5, "atol": 2e-6}
# Large nodes alone: splits of a few rows can be equally good, and then the last bit chooses.
XGB = {"max_depth": 3, "min_child_weight": 4, "eta": 0.3, "nthread": 1}
LGB = {"num_leaves": 7, "min_data_in_leaf": 40, "num_threads": 1, "verbose": -1, "deterministic": True}
XGB_OWN = {
    "multi": {"objective": "multi:softprob", "num_class": CLASSES},
    "binary": {"objective": "binary:logistic"},
}
LGB_OWN = {"multi": {"objective": "multiclass", "num_class": CLASSES}, "binary": {"objective": "binary"}}


def xgb_trees(booster):
    """Of all trees, node by node: what is asked, and the numbers: Hessians, gains, leaves."""
    asked, numbers = [], []

    def walk(node):
        asked.append((node.get("split"), node.get("split_condition"), node.get("missing")))
        numbers.append([node["cover"], node.get("gain", 0), node.get("leaf", 0)])
        for child in node.get("children", []):
            walk(child)

    for tree in booster.get_dump(dump_format="json", with_stats=True):
        walk(json.loads(tree))
    return asked, np.array(numbers)


def lgb_trees(booster):
    """The same of LightGBM, whose Hessians are called weights."""
    asked, numbers = [], []

    def walk(node):
        asked.append((node.get("split_feature"), node.get("threshold"), node.get("leaf_count")))
        weight = node.get("leaf_weight", node.get("internal_weight"))
        numbers.append([weight, node.get("split_gain", 0), node.get("leaf_value", 0)])
        for child in ("left_child", "right_child"):
            if child in node:
                walk(node[child])

    for tree in booster.dump_model()["tree_info"]:
        walk(tree["tree_structure"])
    return asked, np.array(numbers)


def assert_same_trees(found, expected):
    assert found[0] == expected[0]
    assert len(found[0]) > 3 * ROUNDS, "trees of a single leaf say nothing"
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)


def test_xgboost_has_the_trees_of_its_own_objective(xgb, problem, kind):
    """Started from 0 both; gradients and Hessians with their factor are in leaves, gains and covers."""
    data = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    parameters = {**XGB, **XGB_OWN[kind], "base_score": 0.5}
    own = xgb.train(parameters, data, ROUNDS)
    ours = xgb.train(parameters, data, ROUNDS, obj=xgboost_objective())
    assert_same_trees(xgb_trees(ours), xgb_trees(own))
    margins = [booster.predict(data, output_margin=True) for booster in (ours, own)]
    np.testing.assert_allclose(*margins, **ROUNDED)
    np.testing.assert_allclose(ours.predict(data), own.predict(data), **ROUNDED)


def test_xgboost_starts_from_the_prior(xgb, problem, kind):
    """Its own objective finds the start value by itself; without it ours goes another way."""
    data = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    parameters = {**XGB, **XGB_OWN[kind]}
    own = xgb.train(parameters, data, ROUNDS)
    start = problem.prior().tolist() if kind == "multi" else problem.share()
    ours = xgb.train({**parameters, "base_score": start}, data, ROUNDS, obj=xgboost_objective())
    assert_same_trees(xgb_trees(ours), xgb_trees(own))
    np.testing.assert_allclose(ours.predict(data), own.predict(data), **ROUNDED)
    without = xgb.train(parameters, data, ROUNDS, obj=xgboost_objective())
    assert np.abs(without.predict(data) - own.predict(data)).max() > 0.02


def test_xgboost_without_the_name_of_an_objective_predicts_logits(xgb, problem, kind):
    data = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    parameters = {**XGB, "base_score": problem.prior().tolist()}
    if kind == "multi":
        parameters["num_class"] = CLASSES
    ours = xgb.train(parameters, data, ROUNDS, obj=xgboost_objective())
    logits = ours.predict(data, output_margin=True)
    own = xgb.train({**XGB, **XGB_OWN[kind]}, data, ROUNDS).predict(data)
    found = xent_rs.softmax(logits) if kind == "multi" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found, own, **ROUNDED)
    expected = logits.argmax(axis=1) if kind == "multi" else logits
    np.testing.assert_array_equal(ours.predict(data), expected)


def test_xgb_classifier(xgb, problem, kind):
    pytest.importorskip("sklearn", reason="XGBClassifier needs scikit-learn: pip install scikit-learn")
    from sklearn.base import clone

    parameters = {
        "max_depth": 3,
        "min_child_weight": 4,
        "learning_rate": 0.3,
        "n_estimators": ROUNDS,
        "n_jobs": 1,
    }
    own = xgb.XGBClassifier(**parameters).fit(problem.x, problem.y, sample_weight=problem.weight)
    start = problem.prior().tolist() if kind == "multi" else problem.share()
    ours = clone(xgb.XGBClassifier(**parameters, base_score=start, objective=xgboost_objective()))
    ours.fit(problem.x, problem.y, sample_weight=problem.weight)
    ours = pickle.loads(pickle.dumps(ours))
    np.testing.assert_allclose(ours.predict_proba(problem.x), own.predict_proba(problem.x), **ROUNDED)
    np.testing.assert_array_equal(ours.predict(problem.x), own.predict(problem.x))


def test_lightgbm_has_the_trees_of_its_own_objective(lgb, problem, kind):
    def train(objective, **parameters):
        data = lgb.Dataset(problem.x, problem.y, weight=problem.weight)
        return lgb.train({**LGB, **LGB_OWN[kind], "objective": objective, **parameters}, data, ROUNDS)

    own = train(LGB_OWN[kind]["objective"], boost_from_average=False)
    ours = train(lightgbm_objective(binary=kind == "binary"))
    assert_same_trees(lgb_trees(ours), lgb_trees(own))
    raw = [booster.predict(problem.x, raw_score=True) for booster in (ours, own)]
    np.testing.assert_allclose(*raw, **ROUNDED)


def test_lightgbm_starts_from_the_prior(lgb, problem, kind):
    own = lgb.train(
        {**LGB, **LGB_OWN[kind]}, lgb.Dataset(problem.x, problem.y, weight=problem.weight), ROUNDS
    )
    start = problem.prior()
    init_score = np.tile(start, (ROWS, 1)) if kind == "multi" else np.repeat(start, ROWS)
    data = lgb.Dataset(problem.x, problem.y, weight=problem.weight, init_score=init_score)
    objective = lightgbm_objective(binary=kind == "binary")
    ours = lgb.train({**LGB, **LGB_OWN[kind], "objective": objective}, data, ROUNDS)
    expected = own.predict(problem.x, raw_score=True)
    np.testing.assert_allclose(ours.predict(problem.x, raw_score=True) + start, expected, **ROUNDED)


# Of how it uses scikit-learn (4.6), and of how the test uses it (4.7), which 4.6 knows no other way.
of_lightgbm_itself = pytest.mark.filterwarnings(
    "ignore:X does not have valid feature names", "ignore:The argument 'eval_set' is deprecated"
)


@of_lightgbm_itself
def test_lgbm_classifier(lgb, problem, kind):
    from sklearn.base import clone

    parameters = {
        "num_leaves": 7,
        "min_child_samples": 40,
        "n_estimators": ROUNDS,
        "n_jobs": 1,
        "verbose": -1,
    }
    own = lgb.LGBMClassifier(**parameters, boost_from_average=False)
    own.fit(problem.x, problem.y, sample_weight=problem.weight)
    ours = clone(lgb.LGBMClassifier(**parameters, objective=lightgbm_objective(binary=kind == "binary")))
    ours.fit(problem.x, problem.y, sample_weight=problem.weight)
    ours = pickle.loads(pickle.dumps(ours))
    raw = [model.predict(problem.x, raw_score=True) for model in (ours, own)]
    np.testing.assert_allclose(*raw, **ROUNDED)


def test_pos_weight_is_scale_pos_weight(xgb, lgb):
    problem = Problem("binary", weighted=True)
    data = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    parameters = {**XGB, **XGB_OWN["binary"], "base_score": 0.5}
    own = xgb.train({**parameters, "scale_pos_weight": 3}, data, ROUNDS)
    ours = xgb.train(parameters, data, ROUNDS, obj=xgboost_objective(pos_weight=3))
    assert_same_trees(xgb_trees(ours), xgb_trees(own))

    def train(**parameters):
        data = lgb.Dataset(problem.x, problem.y, weight=problem.weight)
        return lgb.train({**LGB, **parameters}, data, ROUNDS)

    own = train(objective="binary", scale_pos_weight=3, boost_from_average=False)
    assert_same_trees(
        lgb_trees(train(objective=lightgbm_objective(binary=True, pos_weight=3))), lgb_trees(own)
    )


# --- Metrics and early stopping ---

# XGBoost writes the metrics of others so.
SIX_DECIMALS = {"rtol": 0, "atol": 1e-6}


def test_xgboost_loss_is_its_own_metric(xgb, problem, kind):
    """Of the weights of rows, too: XGBoost evaluates both after each round."""
    data = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    objective, said = xgboost_objective(), {}
    xgb.train(
        {**XGB, **XGB_OWN[kind]},
        data,
        ROUNDS,
        obj=objective,
        custom_metric=objective.loss,
        evals=[(data, "training")],
        evals_result=said,
        verbose_eval=False,
    )
    own = said["training"]["mlogloss" if kind == "multi" else "logloss"]
    np.testing.assert_allclose(said["training"]["loss"], own, **SIX_DECIMALS)
    assert len(own) == ROUNDS
    assert own[-1] < own[0]


def test_xgb_classifier_stops_early_by_the_loss(xgb, problem):
    pytest.importorskip("sklearn", reason="XGBClassifier needs scikit-learn: pip install scikit-learn")
    objective = xgboost_objective(label_smoothing=0.1)
    model = xgb.XGBClassifier(
        objective=objective,
        eval_metric=objective.loss,
        early_stopping_rounds=3,
        learning_rate=0.4,
        n_estimators=50,
        n_jobs=1,
    )
    model.fit(problem.x, problem.y, eval_set=[problem.validation], verbose=False)
    losses = model.evals_result()["validation_0"]["loss"]
    assert 5 < len(losses) == model.best_iteration + 1 + 3 < 50
    assert model.best_iteration == np.argmin(losses)
    logits = model.predict(
        problem.validation[0], output_margin=True, iteration_range=(0, 1 + model.best_iteration)
    )
    loss = xent_rs.cross_entropy if problem.classes > 1 else xent_rs.binary_cross_entropy
    expected = loss(logits, problem.validation[1], label_smoothing=0.1)
    np.testing.assert_allclose(min(losses), expected, **SIX_DECIMALS)


def test_lightgbm_loss_is_its_own_metric(lgb, problem, kind):
    def train(objective, **more):
        said = {}
        data = lgb.Dataset(problem.x, problem.y, weight=problem.weight)
        parameters = {**LGB, **LGB_OWN[kind], "objective": objective, "boost_from_average": False}
        lgb.train(
            parameters, data, ROUNDS, valid_sets=[data], callbacks=[lgb.record_evaluation(said)], **more
        )
        return said["training"]

    objective = lightgbm_objective(binary=kind == "binary")
    own = train(LGB_OWN[kind]["objective"])["multi_logloss" if kind == "multi" else "binary_logloss"]
    np.testing.assert_allclose(train(objective, feval=objective.loss)["loss"], own, rtol=1e-6)
    assert own[-1] < own[0]


@of_lightgbm_itself
def test_lgbm_classifier_stops_early_by_the_loss(lgb, problem, kind):
    objective = lightgbm_objective(binary=kind == "binary", label_smoothing=0.1)
    model = lgb.LGBMClassifier(
        objective=objective, metric="None", learning_rate=0.4, n_estimators=50, n_jobs=1, verbose=-1
    )
    stop = lgb.early_stopping(3, verbose=False)
    model.fit(
        problem.x, problem.y, eval_set=[problem.validation], eval_metric=objective.loss, callbacks=[stop]
    )
    losses = model.evals_result_["valid_0"]["loss"]
    assert 5 < len(losses) == model.best_iteration_ + 3 < 50
    assert model.best_iteration_ == np.argmin(losses) + 1
    logits = model.predict(problem.validation[0], raw_score=True)
    loss = xent_rs.cross_entropy if kind == "multi" else xent_rs.binary_cross_entropy
    assert min(losses) == pytest.approx(loss(logits, problem.validation[1], label_smoothing=0.1), rel=1e-6)


def test_cross_validation(xgb, lgb):
    """Both libraries copy what they get for each fold."""
    problem = Problem("multi", weighted=True)
    folds = [(np.arange(300), np.arange(300, 600)), (np.arange(300, 600), np.arange(300))]
    objective = xgboost_objective()
    own = {**XGB, **XGB_OWN["multi"], "base_score": 0.5}
    options = {"folds": folds, "as_pandas": False}
    ours = xgb.cv(
        own,
        xgb.DMatrix(problem.x, problem.y, weight=problem.weight),
        ROUNDS,
        obj=objective,
        custom_metric=objective.loss,
        **options,
    )
    expected = xgb.cv(own, xgb.DMatrix(problem.x, problem.y, weight=problem.weight), ROUNDS, **options)
    np.testing.assert_allclose(ours["test-loss-mean"], expected["test-mlogloss-mean"], **SIX_DECIMALS)

    objective = lightgbm_objective()
    own = {**LGB, **LGB_OWN["multi"], "boost_from_average": False}
    expected = lgb.cv(own, lgb.Dataset(problem.x, problem.y, weight=problem.weight), ROUNDS, folds=folds)
    parameters = {**own, "objective": objective}
    ours = lgb.cv(
        parameters,
        lgb.Dataset(problem.x, problem.y, weight=problem.weight),
        ROUNDS,
        folds=folds,
        feval=objective.loss,
    )
    np.testing.assert_allclose(ours["valid loss-mean"], expected["valid multi_logloss-mean"], rtol=1e-6)


# --- Options ---


def of_classes(
    logits,
    labels,
    s,
    *,
    weight=None,
    label_smoothing=0.0,
    temperature=1.0,
    ignore_index=-100,
    pos_weight=None,
):
    """Gradient, Hessian and mean loss of softmax cross-entropy, in float64, as the formulas are."""
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    w = np.ones(CLASSES) if weight is None else np.asarray(weight)
    counts = labels != ignore_index
    y = np.where(counts, labels, 0).astype(int)
    s = np.where(counts, s, 0.0).astype(np.float64)
    t = (1 - label_smoothing) * np.eye(CLASSES)[y] * w[y, np.newaxis] + label_smoothing / CLASSES * w
    mass = t.sum(axis=1, keepdims=True)
    grad = s[:, np.newaxis] * (mass * p - t) / temperature
    hess = s[:, np.newaxis] * mass * p * (1 - p) / temperature**2
    return grad, hess, (s[:, np.newaxis] * t * -np.log(p)).sum() / (s * w[y]).sum()


def of_yes_or_no(logits, labels, s, *, pos_weight=1.0, label_smoothing=0.0, ignore_index=-100):
    """The same of the sigmoid's."""
    counts = labels != ignore_index
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    s = np.where(counts, s, 0.0).astype(np.float64)
    t = (1 - label_smoothing) * np.where(counts, labels, 0.0).astype(np.float64) + label_smoothing / 2
    a = s * (1 + (pos_weight - 1) * t)
    loss = -s * (pos_weight * t * np.log(p) + (1 - t) * np.log(1 - p))
    return a * p - s * pos_weight * t, a * p * (1 - p), loss.sum() / s.sum()


OPTIONS = {
    "multi": [
        {},
        {"weight": [3.0, 1.0, 0.5, 2.0]},
        {"label_smoothing": 0.1},
        {"temperature": 0.5},
        {"ignore_index": 2},
        {"weight": [3, 1, 1, 2], "label_smoothing": 0.2, "temperature": 2.0, "ignore_index": 0},
    ],
    "binary": [
        {},
        {"pos_weight": 4.0},
        {"label_smoothing": 0.1},
        {"ignore_index": 0},
        {"pos_weight": 0.5, "label_smoothing": 0.2, "ignore_index": -1},
    ],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kind", "options"), [(kind, options) for kind in OPTIONS for options in OPTIONS[kind]], ids=str
)
def test_derivatives_and_loss_with_options_are_those_of_the_formulas(kind, options, dtype, random):
    binary = kind == "binary"
    logits = (3 * random.standard_normal((50, CLASSES)[: 1 if binary else 2])).astype(dtype)
    labels = random.integers(0, 2 if binary else CLASSES, 50).astype(np.float32)
    labels[:3] = options.get("ignore_index", labels[:3])
    s = random.uniform(0.5, 2, 50).astype(np.float32)
    grad, hess, loss = (of_yes_or_no if binary else of_classes)(logits, labels, s, **options)
    # Results have the dtype of the predictions.
    near = {"rtol": 3e-6, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for objective, factor in (
        (xgboost_objective(**options), 1 if binary else 2),
        (lightgbm_objective(**options, binary=binary), 1 if binary else CLASSES / (CLASSES - 1)),
    ):
        found = objective(labels, logits, s)
        assert [array.dtype for array in found] == [dtype, dtype]
        np.testing.assert_allclose(found[0], grad, **near)
        np.testing.assert_allclose(found[1], factor * hess, **near)
        mean = objective.loss(labels, logits, s)
        assert (mean[1] if isinstance(mean, tuple) else mean) == pytest.approx(loss, rel=near["rtol"])


class Data:
    """Labels and weights as of the libraries' own data."""

    def __init__(self, labels, weights):
        self.get_label, self.get_weight = lambda: labels, lambda: weights


def test_both_interfaces_are_the_same(kind, random):
    logits = random.standard_normal(MARGINS[kind])
    labels = random.integers(0, 2, ROWS).astype(np.float32)
    weights = random.uniform(0, 2, ROWS).astype(np.float32)
    for objective, none in (
        (xgboost_objective(), np.array([], np.float32)),
        (lightgbm_objective(binary=kind == "binary"), None),
    ):
        for given, absent in ((weights, weights), (None, none)):
            native = objective(logits, Data(labels, absent))
            np.testing.assert_array_equal(native, objective(labels, logits, sample_weight=given))
            mean = objective.loss(labels, logits, given)
            named = objective.loss(logits, Data(labels, absent))
            assert named == (mean if isinstance(mean, tuple) else ("loss", mean))
    assert named[2] is False


def test_only_xgboost_keeps_hessians_from_zero():
    """As its own objectives do, where the weight is 0, too."""
    logits, labels, weight = np.array([[0.0, 400.0], [0.0, 1.0]], np.float32), [1.0, 0.0], [1.0, 0.0]
    assert (
        xgboost_objective()(labels, logits, weight)[1].tolist() == np.full((2, 2), 1e-16, np.float32).tolist()
    )
    assert xgboost_objective()([1.0], np.array([400.0]))[1].tolist() == [1e-16]
    assert lightgbm_objective()(labels, logits, weight)[1].tolist() == np.zeros((2, 2)).tolist()


def test_predictions_are_left_as_they_are(kind, random):
    """LightGBM's are its own buffer, in Fortran order: derivatives come in that order, which it wants."""
    logits = np.asfortranarray(random.standard_normal(MARGINS[kind]))
    before = logits.copy()
    grad, hess = lightgbm_objective(binary=kind == "binary")(np.zeros(ROWS), logits)
    np.testing.assert_array_equal(logits, before)
    assert grad.flags.f_contiguous
    assert hess.flags.f_contiguous


def test_class_weights_are_weights_of_rows(xgb, lgb):
    problem = Problem("multi", weighted=False)
    weight = np.array([5.0, 1.0, 0.5, 2.0], np.float32)
    parameters = {
        **XGB,
        "num_class": CLASSES,
        "tree_method": "exact",
    }  # no bins, which weights of rows change
    classes = xgb.train(
        parameters, xgb.DMatrix(problem.x, problem.y), ROUNDS, obj=xgboost_objective(weight=weight)
    )
    data = xgb.DMatrix(problem.x, problem.y, weight=weight[problem.y])
    assert_same_trees(
        xgb_trees(classes), xgb_trees(xgb.train(parameters, data, ROUNDS, obj=xgboost_objective()))
    )

    def train(objective, weights):
        data = lgb.Dataset(problem.x, problem.y, weight=weights)
        return lgb.train({**LGB, "num_class": CLASSES, "objective": objective}, data, ROUNDS)

    rows = train(lightgbm_objective(), weight[problem.y])
    assert_same_trees(lgb_trees(train(lightgbm_objective(weight=weight), None)), lgb_trees(rows))


def test_ignored_rows_count_as_those_of_weight_zero(xgb):
    problem = Problem("multi", weighted=False)
    labels, weight = np.where(problem.x[:, 0] > 1, -1, problem.y), (problem.x[:, 0] <= 1).astype(float)
    assert 0 < weight.sum() < ROWS
    parameters = {**XGB, "num_class": CLASSES, "tree_method": "exact"}
    ignoring = xgboost_objective(ignore_index=-1)
    ours = xgb.train(parameters, xgb.DMatrix(problem.x, labels), ROUNDS, obj=ignoring)
    data = xgb.DMatrix(problem.x, problem.y, weight=weight)
    zero = xgb.train(parameters, data, ROUNDS, obj=xgboost_objective())
    assert_same_trees(xgb_trees(ours), xgb_trees(zero))


def test_labels_of_xgboost_may_be_probabilities(xgb, random):
    """One-hot ones have the trees of classes; those of a teacher are learned."""
    problem = Problem("multi", weighted=True)
    one_hot = xgb.DMatrix(problem.x, np.eye(CLASSES)[problem.y], weight=problem.weight)
    classes = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    parameters = {**XGB, "base_score": 0.0}
    ours = xgb.train(parameters, one_hot, ROUNDS, obj=xgboost_objective())
    expected = xgb.train({**parameters, "num_class": CLASSES}, classes, ROUNDS, obj=xgboost_objective())
    assert_same_trees(xgb_trees(ours), xgb_trees(expected))
    logits = expected.predict(classes, output_margin=True)
    np.testing.assert_allclose(ours.predict(one_hot), logits, **ROUNDED)

    teacher = problem.x[:, :CLASSES]
    data = xgb.DMatrix(problem.x, xent_rs.softmax(teacher))
    pupil = xgb.train({"nthread": 1}, data, 30, obj=xgboost_objective()).predict(data)
    assert xent_rs.kl_divergence(pupil, teacher) < 0.03 * xent_rs.kl_divergence(0 * teacher, teacher)


# --- Start values ---


def test_prior_is_the_log_of_the_shares():
    labels, weight = [0, 0, 0, 2, 1, 1], [1, 1, 2, 4, 0, 2]
    np.testing.assert_allclose(prior(labels, 3), np.log([3 / 6, 2 / 6, 1 / 6]), rtol=1e-15)
    np.testing.assert_allclose(prior(labels, 3, weight), np.log([0.4, 0.2, 0.4]), rtol=1e-15)
    np.testing.assert_allclose(prior(labels, 4)[3], np.log(1e-15), rtol=1e-15)
    np.testing.assert_allclose(prior([0, 1, 1, 0.5], 1, [1, 1, 1, 2]), np.log([3 / 2]), rtol=1e-14)
    np.testing.assert_allclose(prior([0, 0], 1), np.log([1e-15]), rtol=1e-15)
    assert prior(np.float32(labels), np.int64(3)).dtype == np.float64


def test_prior_is_the_start_value_of_xgboost(xgb, problem, kind):
    data = xgb.DMatrix(problem.x, problem.y, weight=problem.weight)
    config = json.loads(xgb.train({**XGB, **XGB_OWN[kind]}, data, 1).save_config())
    own = json.loads(config["learner"]["learner_model_param"]["base_score"])
    start = problem.prior()
    expected = start - start.mean() if kind == "multi" else 1 / (1 + np.exp(-start))
    np.testing.assert_allclose(own, expected, rtol=1e-4)  # the sums of XGBoost are in float32


# --- What is wrong with arguments ---

MULTI = np.zeros((3, 4), np.float32)
BINARY = np.zeros(3, np.float32)
GOOD = np.array([0.0, 1.0, 1.0], np.float32)


def answer(*arguments, **options):
    return lambda: xgboost_objective(**options)(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            answer([0, 1.5, 2], MULTI),
            ValueError,
            "labels[1] is 1.5; expected whole numbers",
        ),
        (answer([0, np.nan, 2], MULTI), ValueError, "labels[1] is nan; expected whole numbers"),
        (
            answer([0, 1, 4], MULTI),
            IndexError,
            "targets[2] is 4; expected 0 to 3, or ignore_index -100",
        ),
        (
            answer([0, 1, -1], MULTI),
            IndexError,
            "targets[2] is -1; expected 0 to 3, or ignore_index -100",
        ),
        (
            answer([0, 1, 2], BINARY),
            ValueError,
            "labels[2] is 2; expected 0 to 1 for one prediction a row",
        ),
        (
            answer([0, np.nan, 1], BINARY),
            ValueError,
            "labels[1] is nan; expected 0 to 1 for one prediction a row",
        ),
        (answer([0, 1], MULTI), ValueError, "labels have shape (2,); expected (3,), one a row"),
        (answer([0, 1], BINARY), ValueError, "labels have shape (2,); expected (3,), one a row"),
        (
            answer(np.eye(3, 4) + np.eye(3, 4, 1), MULTI),
            ValueError,
            "labels[0] adds up to 2; expected 1, as probabilities of classes",
        ),
        (
            answer(GOOD, np.zeros((3, 4, 1))),
            ValueError,
            "predictions have shape (3, 4, 1); expected (n, C), or (n,) for yes or no",
        ),
        (
            answer(GOOD, np.zeros((3, 1))),
            ValueError,
            "predictions have shape (3, 1); expected (n, C), or (n,) for yes or no",
        ),
        (
            answer(["a", "b", "c"], MULTI),
            TypeError,
            "dtype of labels is <U1; expected real numbers",
        ),
        (
            lambda: xgboost_objective(pos_weight="a"),
            TypeError,
            "dtype of pos_weight is <U1; expected real numbers",
        ),
        (
            answer(GOOD, MULTI, [1, 2]),
            ValueError,
            "sample_weight has shape (2,); expected (3,), one a row",
        ),
        (
            answer(GOOD, MULTI, pos_weight=2),
            ValueError,
            "pos_weight is given for predictions for each class; expected weight, a number a class",
        ),
        (
            answer(GOOD, BINARY, weight=[1, 2]),
            ValueError,
            "weight is given for one prediction a row; expected pos_weight, or weights of rows",
        ),
        (
            answer(GOOD, BINARY, temperature=2),
            ValueError,
            "temperature is given for one prediction a row; expected no temperature",
        ),
        (
            lambda: lightgbm_objective(binary=True, weight=[1, 2]),
            ValueError,
            "weight is given for one prediction a row; expected pos_weight, or weights of rows",
        ),
        (
            lambda: lightgbm_objective(pos_weight=2),
            ValueError,
            "pos_weight is given for predictions for each class; expected weight, a number a class",
        ),
        (
            lambda: lightgbm_objective()(GOOD, BINARY),
            ValueError,
            "predictions have shape (3,); expected (n, C) with the parameter num_class, or binary=True",
        ),
        (
            lambda: lightgbm_objective(binary=True)(GOOD, MULTI),
            ValueError,
            "predictions have shape (3, 4); expected (n,) with binary=True",
        ),
        (
            lambda: xgboost_objective(weight=[[1, 2]]),
            ValueError,
            "weight has shape (1, 2); expected (C,), one number a class",
        ),
        (
            answer(GOOD, MULTI, weight=[1, 2]),
            ValueError,
            "weight has shape (2,); expected (4,), one number a class",
        ),
        (
            lambda: xgboost_objective(pos_weight=[1, 2]),
            ValueError,
            "pos_weight has shape (2,); expected one number",
        ),
        (
            lambda: xgboost_objective(label_smoothing=2),
            ValueError,
            "label_smoothing is 2.0; expected a number from 0 to 1",
        ),
        (
            lambda: xgboost_objective(z_loss=1e-4),
            TypeError,
            "xgboost_objective() takes no z_loss: there is no Hessian with it",
        ),
        (
            lambda: lightgbm_objective(sample_weight=GOOD),
            TypeError,
            "lightgbm_objective() takes no sample_weight: weights of rows come with the data",
        ),
        (
            lambda: lightgbm_objective(reduction="mean"),
            TypeError,
            "lightgbm_objective() takes no reduction: boosting wants the sum over the rows",
        ),
        (
            lambda: xgboost_objective(lable_smoothing=0.1),
            TypeError,
            "xgboost_objective() got an unexpected keyword argument 'lable_smoothing'. "
            "Did you mean 'label_smoothing'?",
        ),
        (lambda: prior([0, 1.5], 2), ValueError, "labels[1] is 1.5; expected whole numbers"),
        (lambda: prior([0, 2], 2), IndexError, "labels[1] is 2; expected 0 to 1"),
        (lambda: prior([0, 2], 1), ValueError, "labels[1] is 2; expected 0 to 1 for one prediction a row"),
        (lambda: prior([[0, 1]], 2), ValueError, "labels have shape (1, 2); expected (n,)"),
        (lambda: prior([0, 1], 0), ValueError, "num_class is 0; expected at least 1"),
        (lambda: prior([0, 1], 2.0), TypeError, "num_class is 2.0; expected an integer"),
        (
            lambda: prior([0, 1], 2, [1]),
            ValueError,
            "weight has shape (1,); expected (2,), one a row",
        ),
        (
            lambda: prior([], 2),
            ValueError,
            "the weights of 0 rows add up to 0; expected a positive number",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_errors_pass_through_the_libraries(xgb, lgb):
    problem = Problem("multi", weighted=False)
    with pytest.raises(
        ValueError, match=r"^labels\[\d+\] is [23]; expected 0 to 1 for one prediction a row$"
    ):
        xgb.train(XGB, xgb.DMatrix(problem.x, problem.y), 1, obj=xgboost_objective())
    with pytest.raises(
        ValueError, match=r"^predictions have shape \(600,\); expected \(n, C\) with the parameter"
    ):
        lgb.train({**LGB, "objective": lightgbm_objective()}, lgb.Dataset(problem.x, problem.y), 1)


# --- What the libraries, and Python, want of an objective ---


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_objectives_can_be_copied_and_pickled(again):
    for objective in (xgboost_objective(weight=[1, 2, 3, 4]), lightgbm_objective(weight=[1, 2, 3, 4])):
        other = again(objective)
        assert repr(other) == repr(objective)
        np.testing.assert_array_equal(other(GOOD, MULTI), objective(GOOD, MULTI))
        assert again(objective.loss)(GOOD, MULTI) == objective.loss(GOOD, MULTI)


def test_weights_are_copied():
    weight = np.ones(4)
    objective = xgboost_objective(weight=weight)
    expected = objective(GOOD, MULTI)
    weight[:] = 7
    np.testing.assert_array_equal(objective(GOOD, MULTI), expected)


def test_signatures():
    options = "weight=None, pos_weight=1.0, ignore_index=-100, label_smoothing=0.0, temperature=1.0"
    for function, expected in (
        (xgboost_objective, f"(*, {options})"),
        (lightgbm_objective, f"(*, binary=False, {options})"),
        (prior, "(labels, num_class, weight=None)"),
    ):
        parameters = inspect.signature(function).parameters.values()
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        assert str(inspect.Signature(bare)) == expected
    for called in (
        xgboost_objective(),
        xgboost_objective().loss,
        lightgbm_objective(),
        lightgbm_objective().loss,
    ):
        assert list(inspect.signature(called).parameters)[2:] == ["sample_weight"]


def test_no_library_is_imported(python):
    python(
        "import sys, xent_rs; assert 'xent_rs.boosting' not in sys.modules; "
        "from xent_rs import boosting; boosting.xgboost_objective(); boosting.lightgbm_objective(); "
        "assert not {'xgboost', 'lightgbm', 'sklearn', 'scipy'} & set(sys.modules)"
    )
