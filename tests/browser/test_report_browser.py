"""The report in a real browser with the network off: what is seen, what keys do, what a hostile name cannot do."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.pages.report import write_report
from tests.pipeline.synthetic_run import SCRIPT, Drawn, make_run

CARDS = 23  # of the synthetic run: flagged images but unreadable ones, and one file shown in the card of its twin
GIVEN, PREDICTION = (0x1F, 0x9B, 0xFF), (0xFF, 0x8B, 0x1F)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("browser")))


def seen(page):
    return page.locator("article.card:visible h3").all_text_contents()


def focused(page):
    return page.evaluate("document.activeElement.querySelector('h3')?.innerText")


def painted(locator, colour):
    pixels = np.asarray(Image.open(BytesIO(locator.screenshot())).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(axis=2) <= 14).sum())


def card(page, name):
    return page.locator("article.card", has=page.get_by_role("heading", name=name, exact=True))


def test_it_opens_offline_and_draws_every_picture(visit, report):
    page = visit(report)
    assert page.title() == "dataset · fixaudit report"
    assert len(seen(page)) == CARDS
    loaded = page.evaluate(
        """async () => {
            let count = 0;
            for (const image of document.querySelectorAll("svg image")) {
                const probe = new Image();
                probe.src = image.getAttribute("href");
                await probe.decode();
                count += probe.naturalWidth > 0;
            }
            return count;
        }"""
    )
    assert loaded == CARDS


def test_both_panels_show_the_image_and_their_own_evidence(visit, report):
    page = visit(report)
    given, prediction = card(page, "cat/one object.png").locator("svg.image").all()
    red = (214, 64, 69)  # the drawn circle
    assert painted(given, GIVEN) > 300
    assert painted(prediction, PREDICTION) > 300
    assert painted(given, PREDICTION) == painted(prediction, GIVEN) == 0
    for layer in ("p", "b"):
        page.keyboard.press(layer)
    assert painted(given, GIVEN) == painted(prediction, PREDICTION) == 0
    assert painted(given, red) > 1000
    assert painted(prediction, red) == pytest.approx(painted(given, red), rel=0.01)


def test_each_layer_can_be_switched_by_key_and_by_hand(visit, report):
    page = visit(report)
    panel = card(page, "cat/one object.png").locator("figure").first
    for key, kind, first in (("p", "dots", True), ("b", "box", True), ("m", "mask", False), ("h", "heat", False)):
        layer = panel.locator(f".l-{kind}").first
        assert layer.is_visible() == first
        page.keyboard.press(key)
        assert layer.is_visible() != first
        page.locator(f"label:has(#t-{kind})").click()
        assert layer.is_visible() == first


def test_numbers_filter_by_issue(visit, report):
    page = visit(report)
    everything = seen(page)
    page.keyboard.press("3")
    assert len(seen(page)) == 5
    assert card(page, "dog/two-objects.png").is_visible()
    assert not card(page, "cat/one object.png").is_visible()
    page.keyboard.press("5")
    assert seen(page) == ["cat/copy.png"]
    assert "dog/copy.png" in card(page, "cat/copy.png").inner_text()
    page.keyboard.press("6")
    assert seen(page) == []
    assert page.locator("#unreadable").is_visible()
    assert not page.locator("#empty").is_visible()
    page.keyboard.press("9")
    assert page.locator("#f-unreadable").is_checked()
    page.keyboard.press("1")
    assert seen(page) == everything


def test_j_and_k_walk_through_what_is_shown(visit, report):
    page = visit(report)
    page.keyboard.press("4")
    names = seen(page)
    assert len(names) == 3
    for expected in (*names, names[-1]):
        page.keyboard.press("j")
        assert focused(page) == expected
        assert page.locator(":focus").evaluate("card => getComputedStyle(card).outlineStyle") == "solid"
        top = page.locator(":focus").bounding_box()["y"]
        bar = page.locator(".tools").bounding_box()
        assert bar["y"] + bar["height"] <= top + 1
        assert top < 900
    page.keyboard.press("k")
    assert focused(page) == names[-2]


def test_search_narrows_by_file_and_label(visit, report):
    page = visit(report)
    page.keyboard.press("/")
    page.keyboard.type("TWO-obj")
    assert seen(page) == ["dog/two-objects.png"]
    page.keyboard.press("Escape")
    assert len(seen(page)) == CARDS
    page.locator("#search").fill(SCRIPT)
    assert seen(page) == ["cat/' onclick='alert(3) \"&amp;.png", "cat/<img src=x onerror=alert(2)>.png"]
    page.locator("#search").fill("no such file")
    assert page.locator("#empty").is_visible()
    page.locator("#search").press("3")  # typed into the field, not a filter
    assert page.locator("#f-all").is_checked()


def test_everything_can_be_reached_by_tabbing(visit, report):
    page = visit(report)
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        element = page.locator(":focus")
        reached.append(element.get_attribute("id") or element.inner_text())
        shown = element.evaluate("e => e.type === 'radio' || e.type === 'checkbox' ? e.nextElementSibling : e")
        assert shown is not None
        style = element.evaluate(
            "e => getComputedStyle(['radio', 'checkbox'].includes(e.type) ? e.nextElementSibling : e).outlineStyle"
        )
        assert style == "solid"
    assert reached[0] == "Skip to the flagged images"
    assert {"f-all", "t-dots", "t-box", "t-mask", "t-heat", "search", "Copy"} <= set(reached)


def test_the_class_table_sorts(visit, report):
    page = visit(report)
    page.locator("#classes summary").click()
    names = page.locator("#classes tbody th")
    assert names.first.inner_text() == "cat"
    page.locator("#classes thead button", has_text="Images").click()
    images = [int(cell) for cell in page.locator("#classes tbody td:nth-child(2)").all_inner_texts()]
    assert images == sorted(images, reverse=True)
    page.locator("#classes thead button", has_text="Images").click()
    assert [int(cell) for cell in page.locator("#classes tbody td:nth-child(2)").all_inner_texts()] == images[::-1]
    assert page.locator("#classes th[aria-sort=ascending]").inner_text().startswith("Images")
    page.locator("#classes thead button", has_text="Accuracy").click()
    accuracy = page.locator("#classes tbody td:nth-child(7)").all_inner_texts()
    assert [text[:2] for text in accuracy] == ["80", "70", "60", "50", "40", "–"]
    page.locator("#classes thead button", has_text="Class").click()
    page.locator("#classes thead button", has_text="Class").click()
    found = names.all_inner_texts()
    assert len(found) == 6
    assert found == page.evaluate("texts => texts.toSorted((a, b) => a.localeCompare(b))", found)


def test_copy_selects_the_command(visit, report):
    page = visit(report)
    card(page, "cat/one object.png").get_by_role("button").click()
    selected = page.evaluate("getSelection().toString()")
    assert selected == f"fixaudit explain {report.parent} 'cat/one object.png'"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 760, 1280, 2200])
def test_no_window_is_too_narrow(visit, report, width, scheme):
    page = visit(report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#classes summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    given, prediction = card(page, "cat/one object.png").locator("figure").all()
    assert given.bounding_box()["width"] > 120
    assert given.bounding_box()["y"] == prediction.bounding_box()["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, report, scheme):
    page = visit(report, color_scheme=scheme)
    style = page.evaluate(
        """() => {
            const probe = document.createElement("p");
            document.body.append(probe);
            const colours = {};
            for (const name of ["ground", "paper", "ink", "soft", "given", "prediction", "mislabeled", "ambiguous",
                                "adversarial_drift", "duplicate_conflict", "unreadable"]) {
                probe.style.color = `var(--${name})`;
                colours[name] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
            }
            return colours;
        }"""
    )
    assert (np.mean(style["ground"]) > 128) == (scheme == "light")
    for name, colour in style.items():
        if name not in ("ground", "paper"):
            for ground in ("ground", "paper"):
                assert contrast(colour, style[ground]) >= 4.5, (name, ground)
    assert contrast(style["paper"], style["ink"]) >= 7  # a chosen filter


def contrast(one, other):
    """Return the contrast ratio of WCAG 2.1, 1.4.3."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["protanopia", "deuteranopia", "tritanopia"],
)
def test_the_two_evidences_differ_for_the_colour_blind(matrix):
    # Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB.
    def as_seen(colour):
        linear = ((np.array(colour) / 255 + 0.055) / 1.055) ** 2.4
        return 255 * np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.4)

    assert np.abs(as_seen(GIVEN) - as_seen(PREDICTION)).max() > 100


def test_without_scripts_filters_and_layers_still_work(visit, report):
    page = visit(report, java_script_enabled=False)
    assert page.locator("article.card").count() == CARDS
    page.locator("label:has(#f-ambiguous)").click()
    assert len(seen(page)) == 5
    page.locator("label:has(#t-box)").click()
    assert not card(page, "dog/two-objects.png").locator("rect.l-box").first.is_visible()


def test_print_leaves_out_the_controls(visit, report):
    page = visit(report)
    page.emulate_media(media="print")
    assert not page.locator(".tools").is_visible()
    assert page.locator(".counts").is_visible()
    assert card(page, "cat/one object.png").evaluate("e => getComputedStyle(e).breakInside") == "avoid"
    assert page.pdf().startswith(b"%PDF")


def test_an_injected_script_or_style_does_not_run(browser, report, tmp_path):
    hostile = report.read_text(encoding="utf-8").replace(
        "</body>",
        "<script>document.title = 'broken into'</script><style>body { display: none }</style>"
        "<img src=x onerror=\"document.title = 'broken into'\"></body>",
    )
    (tmp_path / "hostile.html").write_text(hostile, encoding="utf-8")
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "hostile.html").as_uri())
    assert page.title() == "dataset · fixaudit report"
    assert page.locator("h1").is_visible()
    assert len([text for text in refused if "Content Security Policy" in text]) >= 3
    page.close()


def test_a_run_without_flags(visit, tmp_path):
    page = visit(write_report(make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0)])))
    assert page.get_by_role("heading", name="Nothing flagged").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("/")
    page.keyboard.press("2")
    assert page.locator("article.card").count() == 0
