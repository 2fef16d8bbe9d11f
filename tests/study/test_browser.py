"""The page in headless Chromium: stepping, folding, jumping, reading values, light and dark, speed."""

import os
import shutil

import numpy as np
import pytest

import tinydiff as td

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, the extra `browser`")
pytest.importorskip("igraph", reason="needs igraph, the extra `study`")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --window-size=1400,900"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens the page of a trace; the browser then, with helpers."""

    def opened(trace, **options):
        path = tmp_path / "page.html"
        trace.html(path, **options)
        browser.get(path.as_uri())
        return Page(browser)

    yield opened
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not errors


class Page:
    def __init__(self, driver):
        self.driver = driver

    def press(self, *keys):
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(getattr(webdriver.Keys, key, key)).perform()

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        return self.driver.find_element("css selector", selector).text

    def run(self, script, *arguments):
        return self.driver.execute_script("return " + script, *arguments)

    def go_to(self, title, gradient):
        """Steps on by keys to a gradient of an operation."""
        self.press("b")
        for _ in range(200):
            if self.text("h2").startswith(title) and self.text(".formula b") == gradient:
                return
            self.press("ARROW_RIGHT")
        raise AssertionError(f"no step {gradient} of {title}")

    def table(self, name):
        rows = self.all(f'section figure[data-name="{name}"] tr')
        cells = [[c.get_attribute("data-value") for c in row.find_elements("css selector", "td")] for row in rows]
        return np.array(cells, np.float32)

    def hover(self, element, x=0, y=0):
        webdriver.ActionChains(self.driver).move_to_element_with_offset(element, x, y).perform()
        return self.text("#tip")


class Net(td.nn.Module):
    def __init__(self):
        self.fc1, self.fc2, self.fc3 = td.nn.Linear(3, 5), td.nn.Linear(5, 5), td.nn.Linear(5, 2)
        self.wide = td.nn.Linear(12, 3)

    def forward(self, x):
        h = td.ops.relu(self.fc1(self.wide(x)))
        return self.fc3(h + td.ops.relu(self.fc2(h)))


@pytest.fixture(scope="module")
def traced():
    rng = np.random.default_rng(3)
    net, target = Net(), rng.normal(size=(4, 2)).astype(np.float32)
    x = td.Tensor(rng.normal(size=(4, 12)).astype(np.float32), requires_grad=True)
    with td.trace() as trace:
        td.ops.mse_loss(net(x), target).backward()
    return trace, net, x


def test_stepping_shows_the_numbers_of_grad(traced, show):
    trace, net, _ = traced
    page = show(trace)
    assert page.text("#count") == "step 1 of 18" and page.text("h2") == "MseLoss #7"
    page.go_to("Linear #6", "L_W")
    assert page.text(".formula .math").startswith("L_W = Xᵀ L_Y") and "(4.1.11)" in page.text(".formula .math")
    assert page.text(".shapes") == "(5, 2) = (5, 4) (4, 2)"
    np.testing.assert_array_equal(page.table("L_W"), net.fc3.weight.grad)
    X, L_Y = page.table("X"), page.table("L_Y")  # X as it stands in the equation: turned
    np.testing.assert_allclose(X @ L_Y, net.fc3.weight.grad, rtol=1e-5)
    lit = [line.text.split(maxsplit=1)[1] for line in page.all(".code.lit")]
    assert lit == ["L_W = linear_weight_gradient(x, l_y)  # (4.1.11)", "return X.T @ L_Y"]
    page.go_to("Linear #6", "L_b")
    np.testing.assert_array_equal(page.table("L_b")[0], net.fc3.bias.grad)
    page.press("ARROW_LEFT")
    assert page.text(".formula b") == "L_W"
    page.press("ARROW_DOWN")
    assert page.text("h2").startswith("Add #5")
    page.press("ARROW_UP", "HOME")
    assert page.text("h2").startswith("Linear #0") and page.text(".kind").lower() == "forward"
    page.press("END")
    assert page.text("#count") == "step 18 of 18" and page.text("#live").startswith("0 B")
    assert page.run("document.querySelector('.box.now').dataset.key") == "n0"


def test_a_sum_is_first_plus_second(traced, show):
    page = show(traced[0])
    while page.text(".kind").lower() != "sum":
        page.press("ARROW_RIGHT")
    np.testing.assert_array_equal(page.table("first") + page.table("second"), page.table("sum"))
    figures = page.all("section figure, .equation figure")
    assert "was there: L_A of Add" in figures[1].text and "comes now: L_X of Linear" in figures[2].text
    assert page.text("h2").startswith("gradients for Relu #2 meet") and len(page.all(".arrow.now")) == 1


def test_the_terms_of_a_formula_are_numbers(show):
    x = td.Tensor(np.random.default_rng(0).normal(size=(2, 4)), requires_grad=True)
    with td.trace() as trace:
        td.ops.exp(td.ops.group_norm(x, 2)).sum().backward()
    page = show(trace)
    page.go_to("GroupNorm #0", "L_X")
    first, second, third, s = (page.table(name) for name in ("L_Y", "mean(L_Y)", "Z * mean(L_Y * Z)", "s"))
    np.testing.assert_allclose((first - second - third) / s, page.table("L_X"), rtol=1e-4, atol=1e-5)
    assert "means over the group" in page.text(".where-letters")


def test_values_are_read_by_hovering(traced, show):
    _, net, _ = traced
    page = show(traced[0])
    page.go_to("Linear #0", "L_W")
    (canvas,) = page.all('figure[data-name="L_W"] canvas')  # (12, 3) has more rows than a table shows
    shown = page.hover(canvas, 0, 0)
    row = int(shown.split("[")[1].split(",")[0])
    assert row in (5, 6) and shown == f"L_W[{row}, 1] = {net.wide.weight.grad[row, 1]!s}"
    page.go_to("Linear #6", "L_W")
    cell = page.all('figure[data-name="L_W"] td')[3]
    assert page.hover(cell) == f"L_W[1, 1] = {net.fc3.weight.grad[1, 1]!s}"
    page.press("ARROW_RIGHT")
    assert not page.all("#tip:not([hidden])")


def test_jumping_by_click_and_search(traced, show):
    page = show(traced[0])
    page.all('.box[data-key="n3"]')[0].click()
    assert page.text("h2") == "Linear #3 fc2"
    page.press("/", "f", "c", "1", "ENTER")
    assert page.text("h2") == "Linear #1 fc1"
    page.press("ARROW_RIGHT")
    assert page.text(".formula b") == "L_W"  # the keys are the page's again
    name = next(leaf.number for leaf in traced[0].leaves if leaf.name == "fc3.weight")
    page.all(f'.box[data-key="l{name}"]')[0].click()
    assert page.text("h2").startswith("Linear #6") and page.text(".formula b") == "L_W"
    strip = page.all("#strip svg")[0]
    webdriver.ActionChains(page.driver).move_to_element_with_offset(strip, -600, 0).click().perform()
    assert page.text(".kind").lower() == "forward"


def test_modules_fold_and_unfold(show):
    block = td.nn.Sequential(*(td.nn.Sequential(td.nn.Linear(2, 2), td.nn.Linear(2, 2)) for _ in range(2)))
    with td.trace() as trace:
        block(td.Tensor(np.ones((3, 2)))).sum().backward()
    page = show(trace)
    before = len(page.all(".box"))
    page.all('.frame text[data-group="0"]')[0].click()
    (folded,) = page.all(".box.module")
    assert len(page.all(".box")) < before and "2 operations" in folded.text
    page.press("b", "END")
    assert "now" in page.all(".box.module")[0].get_attribute("class")
    page.press("f")
    assert len(page.all(".box")) == before and not page.all(".box.module")
    page.press("f")
    page.all(".box.module")[0].click()
    assert len(page.all(".box")) == before
    width = page.run("state.view.width")
    page.press("+")
    assert page.run("state.view.width") < width
    page.press("0")
    assert page.run("state.view.width") == pytest.approx(width)


def test_the_first_value_that_is_not_finite(show):
    x = td.Tensor(np.array([[1.0, 0.0, 4.0]], np.float32), requires_grad=True)
    with np.errstate(all="ignore"), td.trace() as trace:
        (td.ops.sqrt(x) * 2).sum().backward()
    page = show(trace)
    page.press("HOME")
    page.all("#bad")[0].click()
    assert page.text("h2").startswith("Sqrt #0") and page.text(".kind").lower() == "backward"
    assert "1 not finite" in page.text('figure[data-name="L_A"]')
    assert page.all('figure[data-name="L_A"] td')[1].get_attribute("data-value") == "Infinity"
    assert "bad" in page.all('.box[data-key="n0"]')[0].get_attribute("class")
    page.press("HOME", "n")
    assert page.text("h2").startswith("Sqrt #0")


def test_light_and_dark(traced, show):
    page = show(traced[0])
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.press("t")
    dark = page.run(ground)
    assert sum(map(int, light[4:-1].split(","))) > 600 and sum(map(int, dark[4:-1].split(","))) < 150
    page.all("#theme")[0].click()
    assert page.run(ground) == light
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page = show(traced[0])
    assert page.run(ground) == dark
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_hostile_names_stay_text(show):
    hostile = "</script><img src=x onerror=document.title='broken'>"
    with td.trace() as trace:
        td.ops.exp(td.Tensor(np.ones(2), requires_grad=True)).sum().backward()
    trace.note(hostile)
    for op in trace.operations:
        op.place = op.place._replace(module=hostile, text=hostile, file=hostile)
    page = show(trace, title=hostile)
    assert page.driver.title == hostile and not page.all("img") and hostile in page.text("#panel")
    page.press("?")
    assert "the next step" in page.text("#help")


def test_a_key_repaints_a_thousand_nodes_in_less_than_50_ms(show):
    x = td.Tensor(np.ones((4, 4), np.float32), requires_grad=True)
    with td.trace() as trace:
        y = x
        for i in range(500):
            y = y * 0.5 if i % 3 else y + x
            y = td.ops.tanh(y)
        y.sum().backward()
    assert len(trace.operations) > 1000
    page = show(trace)
    times = []
    for key in ["ARROW_RIGHT", "ARROW_DOWN", "ARROW_LEFT"] * 5:
        page.press(key)
        times.append(page.run("state.paint"))
    assert sorted(times)[len(times) // 2] < 50, times


@pytest.mark.skipif(os.environ.get("TINYDIFF_PLAIN") == "1", reason="takes minutes by definition")
def test_the_page_of_the_cifar_network_is_small(show, tmp_path):
    unet = td.UNet(32, 3)
    with td.trace() as trace:
        x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
        td.ops.mse_loss(unet(x, 3), x).backward()
    page = show(trace)
    assert (tmp_path / "page.html").stat().st_size < 20e6
    assert len(page.all(".box")) <= 60 and page.all(".box.module")
    page.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert page.text("h2").startswith("Conv2d")
    paints = []
    for _ in range(5):
        page.press("ARROW_RIGHT")
        paints.append(page.run("state.paint"))
    assert sorted(paints)[2] < 50, paints  # ms
