"""The page of ``xent-rs explore`` in a browser: every control moved, every number compared with the package.

It needs Chromium (Debian's package ``chromium``) and Playwright (``pip install playwright``), which drives
it; without them the tests are skipped.
"""

import contextlib
import re
import shutil
import threading

import numpy as np
import pytest
import xent_rs
from xent_rs import probability
from xent_rs.cli import explore

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

#: Both sides compute in float64, with other roundings.
TOLERANCE = {"rel": 1e-12, "abs": 1e-13}


@pytest.fixture(scope="module")
def address():
    with explore._Server("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # In a container there is no sandbox to be had; the page is our own.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page at an address's hash; at the end no error was logged and nobody else was asked."""
    with contextlib.ExitStack() as stack:
        troubles = []

        def open_one(hash="", **options):
            options = {"viewport": {"width": 1280, "height": 900}, **options}
            context = stack.enter_context(contextlib.closing(browser.new_context(**options)))
            context.set_default_timeout(15_000)
            page = context.new_page()
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.on(
                "console",
                lambda message: message.type in {"error", "warning"} and troubles.append(message.text),
            )
            page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
            page.on(
                "request",
                lambda request: request.url.startswith((address, "data:")) or troubles.append(request.url),
            )
            page.goto(address + hash)
            page.wait_for_selector("html[data-ready]")
            return page

        yield open_one
        assert troubles == []


@pytest.fixture
def page(open_page):
    return open_page()


def until(page, condition):
    """Wait for a condition. (Playwright's own waiting needs eval, which the page forbids.)"""
    for _ in range(750):
        if condition():
            return
        page.wait_for_timeout(20)
    pytest.fail("it did not come to pass within 15 seconds")


def shown(page, name):
    """Return a number of the page, after a look at its text: that has the value, rounded."""
    value, text = page.locator(f'data[data-name="{name}"]').evaluate("node => [node.value, node.textContent]")
    number = float(value)
    text = text.replace("\N{MINUS SIGN}", "-").replace("∞", "inf")
    if re.fullmatch(r"-?[\d.]+(e[-+]\d+)?|-?inf", text):
        digits = len(text.split("e")[0].partition(".")[2])
        scale = 10.0 ** int(text.partition("e")[2] or 0)
        assert float(text) == pytest.approx(number, abs=0.51 * scale * 10.0**-digits)
    return number


def move(page, name, value):
    """Move a slider as a pointer does, and return where it is then."""
    return float(
        page.locator(f'input[name="{name}"]').evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); "
            "return node.value; }",
            str(value),
        )
    )


def choose(page, name, value):
    page.locator(f'input[name="{name}"][value="{value}"]').check(force=True)


def python_line(page):
    return page.locator('[data-name="row-python"]').text_content()


def check_row(page, classes, *, binary=False):
    """Run the line of Python that the page shows; its loss and its gradient are those of the page."""
    line = python_line(page)
    assert eval(line, {"xent_rs": xent_rs}) == pytest.approx(shown(page, "row-loss"), **TOLERANCE)
    with_grad = line.replace("cross_entropy(", "cross_entropy_with_grad(")
    _, gradient = eval(with_grad, {"xent_rs": xent_rs})
    found = [shown(page, f"row-g-{c}") for c in range(classes)]
    assert found == pytest.approx(np.ravel(gradient), **TOLERANCE)
    assert shown(page, "row-bits") == pytest.approx(shown(page, "row-loss") / np.log(2), **TOLERANCE)
    logits = np.array([float(page.input_value(f'input[name="row-z-{c}"]')) for c in range(classes)])
    options = {name: float(value) for name, value in re.findall(r"(temperature|softcap)=([\d.]+)", line)}
    found = [shown(page, f"row-p-{c}") for c in range(classes)]
    if binary:
        assert found == pytest.approx(xent_rs.softmax(np.stack([logits, 0 * logits], 1))[:, 0], **TOLERANCE)
        return line
    statistics = [xent_rs.row_statistics(logits, c, **options) for c in range(classes)]
    assert found == pytest.approx(
        np.exp([float(each.target_log_probability) for each in statistics]), **TOLERANCE
    )
    assert shown(page, "row-logsumexp") == pytest.approx(float(statistics[0].logsumexp), **TOLERANCE)
    assert shown(page, "row-entropy") == pytest.approx(float(statistics[0].entropy), **TOLERANCE)
    return line


def test_a_row_with_one_class_as_target(page):
    assert check_row(page, 3) == "xent_rs.cross_entropy([[2.0, 1.0, 0.1]], [0])"
    assert shown(page, "row-rank") == 0
    for c, value in enumerate((-1.5, 6, 0.3)):
        assert move(page, f"row-z-{c}", value) == value
        check_row(page, 3)
    choose(page, "row-y", 2)
    assert check_row(page, 3) == "xent_rs.cross_entropy([[-1.5, 6.0, 0.3]], [2])"
    assert shown(page, "row-target-probability") == shown(page, "row-p-2")
    assert shown(page, "row-rank") == 1


OPTIONS = {"labelSmoothing": 0.1, "temperature": 0.7, "softcap": 4.5, "zLoss": 0.02}


@pytest.mark.parametrize("kind", ["index", "soft"])
def test_options_alone_and_together(page, kind):
    choose(page, "row-target", kind)
    for name, value in OPTIONS.items():
        off = page.input_value(f'input[name="row-{name}"]')
        move(page, f"row-{name}", value)
        assert "=" in check_row(page, 3)
        move(page, f"row-{name}", off)
        assert "=" not in check_row(page, 3)
    for name, value in OPTIONS.items():
        move(page, f"row-{name}", value)
    page.check('input[name="row-weighted"]')
    for c, value in enumerate((0.5, 2, 0)):
        move(page, f"row-w-{c}", value)
        line = check_row(page, 3)
    assert line.endswith(
        "label_smoothing=0.1, temperature=0.7, softcap=4.5, z_loss=0.02, "
        'weight=[0.5, 2.0, 0.0], reduction="sum")'
    )


def test_probabilities_as_target_add_up_to_one(page):
    choose(page, "row-target", "soft")
    for c, value in enumerate((0.25, 0.6, 1, 0)):
        move(page, f"row-t-{c % 3}", value)
        line = check_row(page, 3)
        targets = eval(re.search(r"\]\], \[(\[.*?\])\]", line)[1])
        assert sum(targets) == pytest.approx(1, rel=1e-12)
        assert targets[c % 3] == pytest.approx(value)
    assert page.locator('dt:text("probability of the target")').is_hidden()


def test_yes_and_no_for_each_class(page):
    choose(page, "row-target", "many")
    assert check_row(page, 3, binary=True) == (
        'xent_rs.binary_cross_entropy([2.0, 1.0, 0.1], [1, 0, 1], reduction="sum")'
    )
    page.check('input[name="row-yes-1"]')
    page.uncheck('input[name="row-yes-0"]')
    move(page, "row-labelSmoothing", 0.2)
    move(page, "row-focalGamma", 1.5)
    page.check('input[name="row-weighted"]')
    move(page, "row-w-1", 2.5)
    assert check_row(page, 3, binary=True) == (
        "xent_rs.binary_cross_entropy([2.0, 1.0, 0.1], [0, 1, 1], label_smoothing=0.2, focal_gamma=1.5, "
        'weight=[1.0, 2.5, 1.0], reduction="sum")'
    )
    for name in ("temperature", "softcap", "zLoss"):
        assert page.is_disabled(f'input[name="row-{name}"]')


def test_what_the_library_refuses_is_disabled_with_a_reason(page):
    focal, smoothing = 'input[name="row-focalGamma"]', 'input[name="row-labelSmoothing"]'
    reason = page.locator("#hint-row-focalGamma")
    assert page.is_enabled(focal)
    move(page, "row-focalGamma", 2)
    assert check_row(page, 3).endswith(", focal_gamma=2)")
    assert page.is_disabled(smoothing)
    move(page, "row-focalGamma", 0)
    move(page, "row-labelSmoothing", 0.1)
    assert page.is_disabled(focal)
    assert reason.text_content() == "Not together with label smoothing."
    with pytest.raises(ValueError, match="focal_gamma"):
        xent_rs.cross_entropy([[2.0, 1.0]], [0], label_smoothing=0.1, focal_gamma=2)
    move(page, "row-labelSmoothing", 0)
    choose(page, "row-target", "soft")
    assert page.is_disabled(focal)
    assert reason.text_content() == "The focal loss needs one class as target."
    with pytest.raises(ValueError, match="focal_gamma"):
        xent_rs.cross_entropy([[2.0, 1.0]], [[0.5, 0.5]], focal_gamma=2)
    choose(page, "row-target", "many")
    assert page.is_enabled(focal)


def test_classes_come_and_go(page):
    add, remove = (page.get_by_role("button", name=f"{what} a class") for what in ("Add", "Remove"))
    for classes in (4, 5, 6):
        add.click()
        check_row(page, classes)
    assert add.is_disabled()
    choose(page, "row-y", 5)
    check_row(page, 6)
    for classes in (5, 4, 3, 2):
        remove.click()
        check_row(page, classes)
    assert remove.is_disabled()
    page.get_by_role("button", name="Random").click()
    check_row(page, 2)
    page.locator('[data-panel="row"]').get_by_role("button", name="Reset").click()
    assert check_row(page, 3) == "xent_rs.cross_entropy([[2.0, 1.0, 0.1]], [0])"


def test_the_line_of_python_is_copied(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_selector("text=Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == python_line(page)
    page.get_by_role("button", name="Copy link to this view").click()
    page.wait_for_selector("text=Link copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_costs_over_the_probability(page):
    for logit, gamma in ((-2.0, 2.0), (0.0, 0.5), (3.55, 5.0), (-7.0, 1.2)):
        move(page, "curve-z", logit)
        move(page, "curve-gamma", gamma)
        row = np.array([logit, 0.0])
        p = xent_rs.softmax(row)[0]
        assert shown(page, "curve-p") == pytest.approx(p, **TOLERANCE)
        expected = {
            "cross": xent_rs.cross_entropy_with_grad(row, 0),
            "focal": xent_rs.cross_entropy_with_grad(row, 0, focal_gamma=gamma),
            "binary": xent_rs.binary_cross_entropy_with_grad(row[:1], [0]),
            "quadratic": ((1 - p) ** 2 / 2, [-((1 - p) ** 2) * p]),
        }
        for name, (loss, gradient) in expected.items():
            assert shown(page, f"curve-{name}-cost") == pytest.approx(loss, **TOLERANCE)
            assert shown(page, f"curve-{name}-pull") == pytest.approx(-gradient[0], **TOLERANCE)


def test_the_point_on_the_curve_follows_the_row(page):
    move(page, "row-z-0", -1)
    assert shown(page, "curve-p") == pytest.approx(shown(page, "row-target-probability"), abs=0.01)


def divergence_of(page):
    names = [f"{what}-{pair}" for pair in ("pq", "qp") for what in ("cross", "entropy", "divergence")]
    return [shown(page, f"divergence-{name}") for name in names]


def expected_divergence(p, q):
    result = []
    for first, second in ((p, q), (q, p)):
        result += [
            probability.cross_entropy(first, second),
            probability.entropy(first),
            probability.kl_divergence(first, second),
        ]
    return pytest.approx([float(each) for each in result], **TOLERANCE)


def test_cross_entropy_is_entropy_and_divergence(page):
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    assert divergence_of(page) == expected_divergence(p, q)
    for name, i, value in (("p", 0, 0.25), ("q", 2, 0.05), ("q", 1, 0.9), ("p", 2, 1)):
        moved = p if name == "p" else q
        rest = moved.sum() - moved[i]
        moved *= (1 - value) / rest
        moved[i] = value
        move(page, f"divergence-{name}-{i}", value)
        page.click("#share")  # which brings the address up to date
        for letter, proportional in (("p", p), ("q", q)):
            found = re.search(rf"divergence\.{letter}=([\d.,]+)", page.url)
            if found:  # exact, in steps of 1/10,000
                exact = np.array(found[1].split(","), float)
                assert exact == pytest.approx(proportional, abs=3e-4)
                assert exact.sum() == pytest.approx(1, rel=1e-15)
                proportional[:] = exact
        found = divergence_of(page)
        assert found == expected_divergence(p, q)
        for cross, entropy, divergence in (found[:3], found[3:]):
            assert cross == pytest.approx(entropy + divergence, rel=1e-12)
    page.get_by_role("button", name="Swap p and q").click()
    assert divergence_of(page) == expected_divergence(q, p)
    page.get_by_role("button", name="Let q be p").click()
    found = divergence_of(page)
    assert found[2] == found[5] == 0
    page.locator('[data-panel="divergence"]').get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="A model that rules out rain").click()
    assert divergence_of(page)[2] == np.inf
    assert page.locator(".sum.endless").count() == 1


def neuron(cost, rate, weight, bias, epochs):
    """Return output, derivative and cost of the neuron after so many steps of gradient descent."""
    for epoch in range(epochs + 1):
        z = np.array([weight + bias])
        a = xent_rs.softmax(np.array([z[0], 0.0]))[0]
        if cost == "quadratic":
            loss, gradient = a * a / 2, a * a * (1 - a)
        else:
            loss, (gradient,) = xent_rs.binary_cross_entropy_with_grad(z, [0])
        if epoch < epochs:
            weight, bias = weight - rate * gradient, bias - rate * gradient
    return a, gradient, loss


STARTS = {"wrong": (0.6, 0.9), "badly-wrong": (2.0, 2.0)}


def check_neurons(page, rate, epoch):
    for start, parameters in STARTS.items():
        for cost in ("quadratic", "cross"):
            a, gradient, _ = neuron(cost, rate, *parameters, epoch)
            assert shown(page, f"neurons-{start}-{cost}-a") == pytest.approx(a, rel=1e-10)
            assert shown(page, f"neurons-{start}-{cost}-gradient") == pytest.approx(gradient, rel=1e-10)
        slope = shown(page, f"neurons-{start}-quadratic-slope")
        a = shown(page, f"neurons-{start}-quadratic-a")
        assert slope == pytest.approx(a * (1 - a), rel=1e-12)


def test_two_neurons_learn_with_two_costs(page):
    epoch = page.locator('input[name="neurons-epoch"]')
    move(page, "neurons-epoch", 150)
    check_neurons(page, 0.15, 150)
    assert f"{shown(page, 'neurons-wrong-start'):.2f}" == "0.82"
    assert f"{shown(page, 'neurons-badly-wrong-start'):.2f}" == "0.98"
    # What the page is there to show: at epoch 150 the neuron that is badly wrong is still so with one cost.
    assert shown(page, "neurons-badly-wrong-quadratic-a") > 0.9
    assert shown(page, "neurons-badly-wrong-cross-a") < 0.1
    page.click('[data-name="neurons-reset"]')
    check_neurons(page, 0.15, 0)
    page.click('[data-name="neurons-step"]')
    check_neurons(page, 0.15, 1)
    page.get_by_role("button", name="10 steps").first.click()
    check_neurons(page, 0.15, 11)
    move(page, "neurons-rate", 1)
    check_neurons(page, 0.01, 11)
    move(page, "neurons-epoch", 300)
    check_neurons(page, 0.01, 300)
    move(page, "neurons-rate", 9)
    check_neurons(page, 1, 300)
    play = page.locator('[data-name="neurons-play"]')
    play.click()
    until(page, lambda: int(epoch.input_value()) > 5)
    assert play.text_content() == "Pause"
    play.click()
    assert play.text_content() == "Play"
    at = int(epoch.input_value())
    assert 5 < at < 300
    check_neurons(page, 1, at)
    move(page, "neurons-epoch", 290)
    play.click()
    until(page, lambda: epoch.input_value() == "300")
    playwright.expect(play).to_have_text("Play")


def landscape_of(page):
    return [shown(page, f"landscape-{name}") for name in ("loss", "w1", "w2")]


class Landscape:
    """The softmax regression of the last panel, in NumPy with this package."""

    def __init__(self, points, weights, **options):
        self.x, self.y = np.array(points)[:, :2], np.array(points)[:, 2].astype(int)
        self.weights, self.options = np.array(weights, float), options

    def evaluate(self):
        logits = self.x @ self.weights.T
        if self.options.pop("quadratic", False):
            self.options["quadratic"] = True
            p = xent_rs.softmax(logits)
            d = p - np.eye(len(self.weights))[self.y]
            gradient = p * (d - (d * p).sum(1, keepdims=True)) / len(p)
            return (d**2).sum(1).mean() / 2, gradient.T @ self.x
        loss, gradient = xent_rs.cross_entropy_with_grad(logits, self.y, **self.options)
        return loss, gradient.T @ self.x

    def step(self, rate, steps=1):
        for _ in range(steps):
            gradient = self.evaluate()[1]
            gradient[0] = 0
            self.weights -= rate * gradient

    def check(self, page, chosen=1):
        expected = [self.evaluate()[0], *self.weights[chosen]]
        assert landscape_of(page) == pytest.approx(expected, rel=1e-9)


POINTS = [(-1, 0.5, 0), (-2, -1, 0), (1, 0.2, 1), (0.5, -1.5, 1), (-0.4, 1.1, 1)]
HASH = "#landscape.points=" + ",".join(str(each) for point in POINTS for each in point)


def test_descent_on_the_landscape(open_page):
    page = open_page(HASH + "&landscape.w=-2,3,0,0")
    model = Landscape(POINTS, [(0, 0), (-2, 3)])
    model.check(page)
    page.click('[data-name="landscape-step"]')
    model.step(1)
    model.check(page)
    page.locator('[data-panel="landscape"]').get_by_role("button", name="10 steps").click()
    model.step(1, 10)
    model.check(page)
    assert shown(page, "landscape-steps") == 11
    move(page, "landscape-rate", 4)
    page.click('[data-name="landscape-step"]')
    model.step(3)
    model.check(page)
    move(page, "landscape-smoothing", 0.1)
    model.options["label_smoothing"] = 0.1
    model.check(page)
    page.click('[data-name="landscape-step"]')
    model.step(3)
    model.check(page)
    move(page, "landscape-smoothing", 0)
    choose(page, "landscape-cost", "quadratic")
    model.options = {"quadratic": True}
    model.check(page)
    page.click('[data-name="landscape-step"]')
    model.step(3)
    model.check(page)
    page.click('[data-name="landscape-reset"]')
    assert shown(page, "landscape-steps") == 0
    play = page.locator('[data-name="landscape-play"]')
    before = shown(page, "landscape-loss")
    play.click()
    until(page, lambda: shown(page, "landscape-steps") > 20)
    play.click()
    assert play.text_content() == "Play"
    assert shown(page, "landscape-loss") < before


def test_a_click_on_the_landscape_starts_there(open_page):
    page = open_page(HASH)
    chart = page.locator('svg[data-name="landscape-loss"]')
    box = chart.bounding_box()
    chart.click(position={"x": box["width"] / 2, "y": 60})
    _, w1, w2 = landscape_of(page)
    assert -2 < w1 < 2
    assert w2 > 4
    Landscape(POINTS, [(0, 0), (w1, w2)]).check(page)
    chart.press("ArrowRight")
    chart.press("Shift+ArrowDown")
    Landscape(POINTS, [(0, 0), (w1 + 0.5, w2 - 2.5)]).check(page)


def test_points_come_and_go_with_clicks_and_keys(open_page):
    page = open_page(HASH + "&landscape.w=1,1,0,0")
    chart = page.locator('svg[data-name="landscape-points"]')
    count = page.locator('svg[data-name="landscape-points"] .point')
    assert count.count() == 5
    box = chart.bounding_box()
    choose(page, "landscape-adding", "0")
    chart.click(position={"x": box["width"] * 0.9, "y": 40})
    assert count.count() == 6
    page.click("#share")  # which brings the address up to date
    numbers = re.search(r"landscape\.points=([^&]*)", page.url)[1].split(",")
    x, y, label = map(float, numbers[-3:])
    assert (x > 2, y > 2, label) == (True, True, 0)
    Landscape([*POINTS, (x, y, label)], [(0, 0), (1, 1)]).check(page)
    chart.click(position={"x": box["width"] * 0.9, "y": 40})  # the same place: it goes
    assert count.count() == 5
    Landscape(POINTS, [(0, 0), (1, 1)]).check(page)
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert count.count() == 6
    Landscape([*POINTS, (0, 0.3, 0)], [(0, 0), (1, 1)]).check(page)
    page.keyboard.press(" ")
    assert count.count() == 5
    page.get_by_role("button", name="Remove all points").click()
    assert count.count() == 0
    page.click('[data-name="landscape-step"]')
    assert shown(page, "landscape-steps") == 0


def test_three_classes(page):
    page.select_option('select[name="landscape-set"]', "three")
    assert page.locator('svg[data-name="landscape-points"] .point').count() == 12
    page.click('[data-name="landscape-step"]')
    page.click("#share")  # which brings the address up to date
    numbers = np.array(re.search(r"landscape\.points=([^&]*)", page.url)[1].split(","), float)
    model = Landscape(numbers.reshape(-1, 3), [(0, 0), (-4, -4), (0, 0)])
    model.step(1)
    model.check(page)
    choose(page, "landscape-chosen", "2")
    model.check(page, chosen=2)
    choose(page, "landscape-classes", "2")
    assert page.locator('svg[data-name="landscape-points"] .point').count() == 8


def test_a_view_is_shared_by_its_address(open_page):
    page = open_page()
    move(page, "row-z-1", -3.3)
    choose(page, "row-target", "soft")
    move(page, "row-t-0", 0.4)
    move(page, "row-temperature", 2)
    move(page, "curve-gamma", 1.1)
    move(page, "divergence-p-0", 0.9)
    move(page, "neurons-epoch", 77)
    until(page, lambda: "neurons.epoch=77" in page.url)
    other = open_page(page.url[page.url.index("#") :])
    names = page.locator("data[data-name]").evaluate_all(
        "nodes => nodes.filter(node => node.checkVisibility()).map(node => node.dataset.name)"
    )
    assert len(names) > 40
    for name in set(names):
        assert shown(other, name) == pytest.approx(shown(page, name), rel=1e-3, nan_ok=True), name


@pytest.mark.parametrize(
    "hash",
    [
        "#row.z=1,2,x&row.y=77&row.target=none&row.temperature=-4&row.w=1",
        "#row.z=&row.zLoss=Infinity&curve.z=1e999&neurons.epoch=NaN&neurons.rate=-1&divergence.p=0,0,0",
        "#landscape.points=1,2&landscape.classes=9&landscape.w=1e9,0,0,0&landscape.cost=%00",
        "#neurons",
        "#=&&==%%%",
    ],
)
def test_an_address_may_hold_anything(open_page, hash):
    page = open_page(hash)
    assert np.isfinite([shown(page, "row-loss"), shown(page, "neurons-wrong-cross-a")]).all()


def test_all_of_it_can_be_reached_with_the_keyboard(page):
    names = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, a, [tabindex="0"]')]
            .filter(node => !node.disabled && (node.type !== 'radio' || node.checked))
            .map((node, i) => {
                node.dataset.number = i;
                return node.ariaLabel || node.labels?.[0]?.textContent || node.textContent;
            })"""
    )
    assert all(name.strip() for name in names), names
    reached = []
    for _ in range(len(names) + 2):
        page.keyboard.press("Tab")
        number, ring = page.evaluate(
            """() => {
                const node = document.activeElement;
                const ring = node.parentElement.matches('.choice label') ? node.nextElementSibling : node;
                return [Number(node.dataset.number ?? -1), getComputedStyle(ring).outlineStyle];
            }"""
        )
        if number < 0:
            break
        assert ring == "solid", names[number]
        reached.append(number)
    assert reached == list(range(len(names)))


def test_sliders_move_with_keys(page):
    page.locator('input[name="row-z-0"]').press("ArrowRight")
    assert check_row(page, 3) == "xent_rs.cross_entropy([[2.1, 1.0, 0.1]], [0])"
    page.locator('input[name="row-y"]').first.press("ArrowDown")
    assert check_row(page, 3) == "xent_rs.cross_entropy([[2.1, 1.0, 0.1]], [1])"
    page.locator('input[name="neurons-epoch"]').press("Home")
    check_neurons(page, 0.15, 0)


def test_who_wants_little_motion_sees_the_end_at_once(open_page):
    page = open_page(reduced_motion="reduce")
    page.click('[data-name="neurons-reset"]')
    page.click('[data-name="neurons-play"]')
    assert page.input_value('input[name="neurons-epoch"]') == "300"
    page.click('[data-name="landscape-play"]')
    assert shown(page, "landscape-steps") == 200


def luminance(color):
    channels = [int(each) / 255 for each in re.findall(r"\d+", color)[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes_and_their_contrast(open_page, scheme):
    page = open_page(color_scheme=scheme)
    background, texts = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                  ['body', '.note', '.said', '.lead', 'a', '.factor', 'figcaption', '.hint']
                      .map(name => getComputedStyle(document.querySelector(name)).color)]"""
    )
    assert (luminance(background) > 0.5) == (scheme == "light")
    for text in texts:  # what the guidelines for accessibility ask for
        pair = sorted([luminance(text), luminance(background)])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5, (text, background)
    other = "dark" if scheme == "light" else "light"
    toggle = page.locator("#theme")
    while toggle.text_content() != f"Theme: {other}":
        toggle.click()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) > 0.5) == (other == "light")
    page.reload()
    assert toggle.text_content() == f"Theme: {other}"


@pytest.mark.parametrize("kind", ["index", "soft", "many"])
def test_nothing_is_cut_off_at_any_width(open_page, kind):
    page = open_page(f"#row.target={kind}&row.w=1,2,3&row.labelSmoothing=0.1&landscape.classes=3")
    for width in (320, 360, 500, 768, 1024, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)  # the charts follow the width
        beyond = page.evaluate(
            """() => [...document.querySelectorAll('body *:not(clipPath, clipPath *, .skip)')]
                .filter(node => { const box = node.getBoundingClientRect();
                    return box.width && (box.right > innerWidth + 1 || box.left < -1); })
                .map(node => node.outerHTML.slice(0, 90))"""
        )
        assert beyond == [], width
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_without_the_kernels_it_says_so(browser, address):
    with contextlib.closing(browser.new_context()) as context:
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.route("**/kernels.wasm", lambda route: route.abort())
        page.goto(address)
        page.wait_for_selector("#failure:not([hidden])")
        assert page.locator("#failure").text_content().startswith("The kernels could not be started: ")
