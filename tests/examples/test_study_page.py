"""The page of the study that is kept with the examples: in a real browser, and as a text."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

import study
from study_page import build, by_hand, movie
from study_page.guide import AFTERWARDS, EXERCISES, PARTS

STUDY = json.loads((Path(study.__file__).parent / "study.json").read_text())
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "index.html"
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        file.write_text(build.page(STUDY, study.CLAIMS))
    return file


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page_file):
    """Opens the page as asked; afterwards nothing went wrong, and nothing was asked of anyone."""
    contexts, said, asked = [], [], []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page_file.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_and_follows_the_theme(opened, width, theme):
    tab = opened(viewport={"width": width, "height": 800}, color_scheme=theme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(
        "[...document.querySelectorAll('.panels svg')].every(e => e.getBoundingClientRect().width > 250)"
    )
    ink, paper = (
        np.mean([int(v) for v in re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3]])
        for name in ("color", "backgroundColor")
    )
    assert (ink < 60 < 200 < paper) if theme == "light" else (paper < 60 < 200 < ink)
    text = tab.locator(".panels text, .panels g[id*='text'] text").first
    assert text.evaluate("e => getComputedStyle(e).fill") == tab.evaluate("getComputedStyle(document.body).color")


def set_value(tab, name: str, value: float) -> None:
    """As if the reader had typed or moved it."""
    tab.locator(f'[data-id="{name}"]').evaluate(
        "(e, value) => { e.value = value; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )


CASES = {
    "as it opens": {},
    "each value": {"x": [-3.5, 0.25, 4.0, 1000.0]},
    "the same four times": {"x": [2.0, 2.0, 2.0, 2.0]},
    "scale, bias and epsilon": {"scale": -1.5, "bias": 0.125, "epsilon": 0.1},
    "a batch of two": {"x": [1.0, 3.0]},
    "a batch of one": {"x": [5.0], "steps": 3},
    "evaluation": {"training": False},
    "evaluation, young averages": {"training": False, "steps": 1, "momentum": 0.99},
    "evaluation before any step": {"training": False, "steps": 0},
    "evaluation, old averages, a batch of one": {"training": False, "steps": 60, "momentum": 0.5, "x": [-7.0]},
}


def test_by_hand_every_input_gives_what_jaxbn_gives(opened):
    tab = opened()
    for name, changed in CASES.items():
        asked = by_hand.START | changed
        tab.check(f'[name="size"][value="{len(asked["x"])}"]')
        tab.check(f'[name="mode"][value="{"training" if asked["training"] else "evaluation"}"]')
        for i, value in enumerate(asked["x"]):
            set_value(tab, f"x{i}", value)
        for option in ("epsilon", "scale", "bias", "momentum", "steps"):
            set_value(tab, option, asked[option])
        for of, expected in by_hand.compute(**asked).items():
            shown = json.loads(tab.locator(f'[data-id="{of}"] output').get_attribute("data-value"))
            np.testing.assert_allclose(shown, expected, rtol=1e-6, atol=1e-6, err_msg=f"{name}: {of}")
    assert "by itself" in tab.locator('[data-id="note"]').inner_text()
    assert tab.locator('[data-dots="x"] circle:visible').count() == 1
    assert tab.locator('[data-id="x3"]').is_disabled()


def test_the_recording_is_shown_at_every_step_and_rate(opened):
    tab = opened()
    recorded = STUDY["claims"]["covariate_shift"]["results"]["movie"]
    for rate, value in enumerate(recorded["rates"]):
        for step in range(0, len(recorded["step"]), 7):
            set_value(tab, "rate", rate)
            set_value(tab, "step", step)
            assert float(tab.locator('[data-id="rate-shown"]').inner_text()) == value
            assert int(tab.locator('[data-id="step-shown"]').inner_text()) == recorded["step"][step]
            for arm in movie.ARMS:
                of = recorded[arm]
                drawn = tab.locator(f'[data-id="{arm}-now"]').get_attribute("d")
                assert drawn == movie.outline(of["counts"][rate][step])
                if of["mean"][rate][step] is None:
                    assert tab.locator(f'[data-id="{arm}-mean"]').inner_text() == "diverged"
                    continue
                for what, expected in (
                    ("mean", of["mean"][rate][step]),
                    ("deviation", of["deviation"][rate][step]),
                    ("accuracy", 100 * of["accuracy"][rate][step]),
                    *([("moved", movie.moved(of, rate, step))] if step else []),
                ):
                    shown = tab.locator(f'[data-id="{arm}-{what}"]').inner_text()
                    if np.isnan(expected):
                        assert shown == "\N{EN DASH}"
                        continue
                    rounding = 0.051 if what == "accuracy" else 6e-4
                    assert abs(float(shown.replace(movie.MINUS, "-")) - expected) <= rounding
    tab.locator('[data-id="play"]').click()
    tab.wait_for_function("document.querySelector('[data-id=\"step\"]').value > 2")


def test_without_scripts_it_reads_as_well(opened):
    tab = opened(java_script_enabled=False)
    assert not tab.locator("#by-hand input").first.is_visible()
    assert not tab.locator('[data-id="play"]').is_visible()
    found = by_hand.compute(**by_hand.START)
    assert tab.locator('[data-id="mean"] output').inner_text() == f"{found['mean']:g}"
    shown = tab.locator('[data-id="y"] output').inner_text().replace(movie.MINUS, "-")
    np.testing.assert_allclose([float(v) for v in shown.split(", ")], found["y"], atol=6e-5)
    assert tab.locator(".movie svg").count() == 3


class Text(HTMLParser):
    """The text of a page, and that of its looked-up numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.numbers, self.ids, self._open = [], [], [], None

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._open = attributes if "data-claim" in attributes else None
        if "id" in attributes:
            self.ids.append(attributes["id"])

    def handle_data(self, data):
        self.words.append(data)
        if self._open:
            self.numbers.append((self._open["data-claim"], self._open["data-name"], data))
            self._open = None


@pytest.fixture(scope="module")
def text(page_file) -> Text:
    parsed = Text()
    parsed.feed(page_file.read_text())
    return parsed


def plain(words: str) -> str:
    return " ".join(words.replace("\N{NO-BREAK SPACE}", " ").split())


def test_every_number_of_the_text_is_that_of_the_study(text):
    assert len(text.numbers) > 40
    for claim, name, shown in text.numbers:
        finding = STUDY["claims"][claim]
        expected = finding[name] if name in ("verdict", "because") else finding["numbers"][name]
        assert plain(shown) == plain(expected)
    words = plain("".join(text.words))
    for finding in STUDY["claims"].values():
        for part in finding["effect"].split("; "):
            assert plain(part) in words


def test_every_sentence_of_the_guide_has_its_answer_and_nothing_is_left_blank(text, page_file):
    words = plain("".join(text.words))
    for lines in PARTS.values():
        for line in lines:
            assert plain(line.says) in words
            assert "not measured" not in build.answer(line, STUDY).lower()
    assert set(EXERCISES) == set(AFTERWARDS)
    page = page_file.read_text()
    assert not re.search(r"\[\[|\{\{", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert len(text.ids) == len(set(text.ids))


def test_nothing_stands_outside_the_page(page_file):
    page = page_file.read_text()
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#|data:|["'])[^\s"'>]*""", page) == []
    assert len(page) < 2_000_000


def test_the_table_is_made_from_the_same_numbers():
    table = (Path(study.__file__).parent / "STUDY.md").read_text()
    assert table == build.markdown(STUDY, study.CLAIMS)
    for finding in STUDY["claims"].values():
        assert html.unescape(finding["effect"]) in table
        assert finding["because"] in table
