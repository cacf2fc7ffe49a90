"""The page that asks, in a real browser with the network off: keys, clicks, what is kept, and the file it saves."""

import csv
import shutil

import pandas as pd
import pytest

from pipeline.audit.review import images_to_review, read_verdicts
from pipeline.pages.review_page import write_review_page
from tests.pipeline.synthetic_run import CLASSES, default_images, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    images = default_images()
    images[-1].verdict = "wrong"  # said in an earlier round
    run = make_run(tmp_path_factory.mktemp("review"), images)
    write_review_page(run)
    return run


def answers(page):
    return page.locator(".ask input:checked").evaluate_all("all => all.map((one) => [one.name, one.value])")


def saved(page, folder):
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "review.csv"
    download.value.save_as(folder / "review.csv")
    return folder / "review.csv"


def test_keys_answer_and_go_on(visit, run):
    page = visit(run.review_page)
    asked = images_to_review(run)
    assert page.locator("#progress").inner_text() == f"0 of {len(asked)}"
    for key in "wrjws":
        page.keyboard.press(key)
    # j leaves the third image open, s the fifth
    assert answers(page) == [["v1", "wrong"], ["v2", "right"], ["v4", "wrong"], ["v5", ""]]
    assert page.locator("#progress").inner_text() == f"4 of {len(asked)}"
    assert page.evaluate("document.activeElement.id") == "c6"
    page.keyboard.press("k")
    page.keyboard.press("r")
    assert ["v5", "right"] in answers(page)


def test_a_key_judges_the_card_in_view(visit, run):
    page = visit(run.review_page)
    page.keyboard.press("r")
    page.locator("#c9").evaluate("card => card.scrollIntoView()")  # as by the wheel: what is focused stays behind
    page.keyboard.press("w")
    assert answers(page) == [["v1", "right"], ["v9", "wrong"]]
    before = page.evaluate("scrollY")
    page.locator("label:has(#t-heat)").click()  # takes the focus out of the cards
    assert page.evaluate("scrollY") == before
    page.keyboard.press("w")
    assert answers(page) == [["v1", "right"], ["v9", "wrong"], ["v10", "wrong"]]


def test_no_key_judges_what_is_off_screen(visit, run):
    page = visit(run.review_page, viewport={"width": 1280, "height": 300})
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert page.locator(".bottom").is_visible()
    page.keyboard.press("w")
    assert answers(page) == []
    page.keyboard.press("w")  # now the last row of cards is in view
    assert len(answers(page)) == 1


def test_the_saved_file_is_what_was_said_with_any_name(visit, run, tmp_path):
    page = visit(run.review_page, accept_downloads=True)
    asked = images_to_review(run)
    said = {}
    for at, name in enumerate(asked):
        word = ("right", "wrong", None)[at % 3]
        if word:
            page.locator(f"#c{at + 1} .ask span", has_text=word.capitalize()).click()
            said[name] = word == "wrong"
    path = saved(page, tmp_path)
    found = {name: one for name, (one,) in read_verdicts(path).items()}
    assert {name: one.wrong for name, one in found.items()} == said | {"plain/0039.jpg": True}
    labels = pd.read_parquet(run.audit).set_index("image_id").label_name
    assert {name: one.label_name for name, one in found.items()} == labels[list(found)].to_dict()
    with path.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(asked) + 1


def test_verdicts_outlive_a_reload(visit, run):
    page = visit(run.review_page)
    page.evaluate("localStorage.clear()")
    page.keyboard.press("w")
    context = page.context
    page.close(run_before_unload=False)
    again = context.new_page()
    again.goto(run.review_page.as_uri())
    assert answers(again) == [["v1", "wrong"]]
    assert again.locator("#progress").inner_text().startswith("1 of ")


def test_that_nobody_can_tell_is_an_answer_too(visit, run, tmp_path):
    page = visit(run.review_page, accept_downloads=True)
    page.keyboard.press("s")
    assert page.locator("#progress").inner_text().startswith("1 of ")
    context = page.context
    page.close(run_before_unload=False)
    again = context.new_page()
    again.goto(run.review_page.as_uri())
    assert answers(again) == [["v1", ""]]
    again.keyboard.press("j")
    again.keyboard.press("j")
    again.keyboard.press("r")
    found = read_verdicts(saved(again, tmp_path))  # in the file it is a row without a verdict, as if not asked
    assert found.keys() == {images_to_review(run)[1], "plain/0039.jpg"}


def test_a_verdict_on_a_label_that_was_changed_since_does_not_come_back(visit, tmp_path):
    images = default_images()
    run = make_run(tmp_path, images)
    write_review_page(run)
    first, second, *_ = images_to_review(run)
    page = visit(run.review_page)
    for key in "ww":
        page.keyboard.press(key)
    context = page.context
    page.close(run_before_unload=False)
    shutil.rmtree(run.path)
    for one in images:
        if one.image_id == first:
            one.label = next(label for label in range(len(CLASSES)) if label not in (one.label, one.pred))
    write_review_page(make_run(tmp_path, images))
    assert images_to_review(run)[:2] == [first, second]
    again = context.new_page()
    again.goto(run.review_page.as_uri())
    assert answers(again) == [["v2", "wrong"]]


def test_pictures_come_bare_and_evidence_on_demand(visit, run):
    page = visit(run.review_page)
    assert page.locator("image").count() == len(images_to_review(run))
    assert page.locator(".l-box:visible").count() == 0
    page.keyboard.press("b")
    assert page.locator("#c1 .l-box:visible").count() > 0


def test_it_fits_a_phone(visit, run):
    page = visit(run.review_page, viewport={"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#c1 .ask span", has_text="Wrong").is_visible()
