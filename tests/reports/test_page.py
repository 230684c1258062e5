"""The report in a browser: sorted, filtered, opened and copied from by click and by keyboard."""

import shutil

import pytest
from suites import grid, row, suite

from clipx.reports.suite import write_report

HOSTILE = '<img src=x onerror="window.broken=1">\'&$x$'
VALUES = {
    "zero-shot": lambda shots, seed: 0.5,
    "gda": lambda shots, seed: 0.6 + 0.02 * shots + 0.001 * seed**2,
    "tip": lambda shots, seed: 0.65 - 0.002 * seed,
    HOSTILE: lambda shots, seed: 0.4 + 0.01 * seed,
}


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--force-prefers-reduced-motion")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    from selenium.webdriver.chrome.service import Service

    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    failed = row("gda", None, seed=4, shots=16, status="failed", error=f"boom {HOSTILE}")
    write_report(suite([*grid(VALUES, shots=(1, 4, 16)), failed], title=HOSTILE), folder)
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, report):
    browser.set_window_size(1280, 900)
    browser.get_log("performance")
    browser.get(report)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def texts(browser, selector):
    return [element.text for element in find(browser, selector)]


def click(browser, element):
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def head(browser, table, name):
    (found,) = [each for each in find(browser, f"{table} .sort") if each.text == name]
    return found


def shown(browser):
    return [
        tuple(each.text.split()[:3]) for each in find(browser, "tbody.cell:not([hidden]) > tr:first-child")
    ]


def test_nothing_is_loaded_and_nothing_of_a_cell_runs(opened):
    import json

    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert opened.execute_script("return window.broken") is None
    assert texts(opened, "h1") == [HOSTILE]
    assert opened.title == HOSTILE


def test_the_summary_sorts_by_click_and_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    rows = "table.summary tbody .pick"
    assert texts(opened, rows) == ["gda", "tip", "zero-shot", HOSTILE]
    button = head(opened, "table.summary", "shots=1")
    click(opened, button)
    assert texts(opened, rows) == ["tip", "gda", "zero-shot", HOSTILE]
    column = button.find_element("xpath", "..")
    assert column.get_attribute("aria-sort") == "descending"
    button.send_keys(Keys.ENTER)
    assert texts(opened, rows) == [HOSTILE, "zero-shot", "gda", "tip"]
    assert column.get_attribute("aria-sort") == "ascending"
    head(opened, "table.summary", "method").send_keys(Keys.SPACE)
    assert column.get_attribute("aria-sort") is None
    assert texts(opened, rows)[1:] == ["gda", "tip", "zero-shot"]


def test_cells_sort_with_the_missing_last_either_way(opened):
    button = head(opened, "table.cells", "top1")
    for extreme in (("gda", "16", "3"), (HOSTILE.split()[0],)):
        click(opened, button)
        cells = shown(opened)
        assert cells[0][: len(extreme)] == extreme
        assert cells[-1] == ("gda", "16", "4")
    click(opened, head(opened, "table.cells", "shots"))
    assert [cell[1] for cell in shown(opened) if cell[0] == "tip"] == ["1"] * 3 + ["4"] * 3 + ["16"] * 3


def test_the_filter_takes_words_and_axes(opened):
    box = find(opened, "#filter")[0]
    box.send_keys("gda shots=1")
    assert shown(opened) == [("gda", "1", str(seed)) for seed in (1, 2, 3)]
    assert texts(opened, "#count") == ["3 of 37 cells"]
    box.clear()
    box.send_keys("nothing like it")
    assert shown(opened) == []
    assert find(opened, "#nothing")[0].is_displayed()
    from selenium.webdriver.common.keys import Keys

    box.send_keys(Keys.ESCAPE)
    assert len(shown(opened)) == 37
    (chip,) = [each for each in find(opened, ".chip") if each.text == "failed 1"]
    click(opened, chip)
    assert shown(opened) == [("gda", "16", "4")]


def test_a_method_of_the_summary_shows_its_cells(opened):
    (pick,) = [each for each in find(opened, ".pick") if each.text == "tip"]
    click(opened, pick)
    assert {cell[0] for cell in shown(opened)} == {"tip"}
    assert len(shown(opened)) == 9


def test_a_cell_opens_on_its_command_config_and_error(opened):
    from selenium.webdriver.common.keys import Keys

    find(opened, "#filter")[0].send_keys("gda shots=16")
    opened.execute_script(
        "document.execCommand = () => { window.copied = document.activeElement.value; return true }"
    )
    opened.execute_script("navigator.clipboard.writeText = () => Promise.reject()")
    first, *_, last = find(opened, "tbody.cell:not([hidden]) .open")
    click(opened, first)
    assert first.get_attribute("aria-expanded") == "true"
    assert texts(opened, ".inside pre.command") == ["clipx adapt --method gda shots=16 seed=1"]
    assert texts(opened, ".inside pre.config") == ["method: gda\nseed: 1"]
    assert "0.921 ± 0.02" in texts(opened, ".inside .metrics")[0]
    assert find(opened, ".inside a")[0].get_attribute("href").endswith("/adapt/gda/v0001/")
    copy = find(opened, ".inside .copy")[0]
    click(opened, copy)
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(opened, 5).until(lambda _: copy.text == "copied")
    assert opened.execute_script("return window.copied") == "clipx adapt --method gda shots=16 seed=1"
    first.send_keys(Keys.ENTER)
    assert not find(opened, ".inside")[0].is_displayed()
    last.send_keys(Keys.SPACE)
    assert texts(opened, "pre.error") == [f"boom {HOSTILE}"]
    assert f"boom {HOSTILE}" in texts(opened, "#failures pre")[0]
    click(opened, head(opened, "table.cells", "seed"))
    order = find(opened, "tbody.cell:not([hidden])")
    assert [len(each.find_elements("css selector", ".inside")) for each in order] == [1, 0, 0, 1]


def test_dark_and_light_are_chosen_and_differ(opened):
    def background():
        return opened.execute_script("return getComputedStyle(document.body).backgroundColor")

    button = find(opened, "#theme")[0]
    seen = {}
    for _ in range(3):
        seen[button.get_attribute("data-now")] = background()
        click(opened, button)
    assert seen.keys() == {"auto", "light", "dark"}
    assert seen["light"] != seen["dark"]


def test_a_phone_scrolls_down_only(opened):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        click(opened, find(opened, ".open")[0])
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
        config = find(opened, ".inside pre.config")[0]
        assert config.rect["x"] + config.rect["width"] <= 390
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_numbers_of_a_column_are_aligned(opened):
    lefts = opened.execute_script(
        "return [...document.querySelectorAll('table.summary tbody tr')].map(row => {"
        " const figure = row.cells[1].querySelector('span').getBoundingClientRect(); return figure.right })"
    )
    assert max(lefts) - min(lefts) < 1
