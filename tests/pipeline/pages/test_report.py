import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import schema
from pipeline.audit.flags import write_audit
from pipeline.audit.issues import write_issues
from pipeline.audit.summary import write_summary
from pipeline.errors import RunFolderError
from pipeline.pages.report import Limits, write_report
from pipeline.runfolder import RunFolder
from pipeline.wording import TITLES, percent, printable
from tests.pipeline.synthetic_run import ARABIC, CLASSES, LONG, SCRIPT, SHARD, Drawn, make_run

VOID = {"meta", "link", "input", "br", "image", "use", "path", "rect", "circle"}


class Node:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children, self.text = tag, attributes, parent, [], ""

    def walk(self):
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag=None, kind=None):
        return [
            node
            for node in self.walk()
            if (tag is None or node.tag == tag)
            and (kind is None or kind in (node.attributes.get("class") or "").split())
        ]

    def said(self):
        return " ".join(" ".join(node.text for node in self.walk()).split())


class Page(HTMLParser):
    """The page as a tree, as a browser would read it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.root = self.at = Node("", {}, None)
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs), self.at)
        self.at.children.append(node)
        if tag not in VOID:
            self.at = node

    def handle_startendtag(self, tag, attrs):
        self.at.children.append(Node(tag, dict(attrs), self.at))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.at.tag == tag, f"<{self.at.tag}> closed by </{tag}>"
            self.at = self.at.parent

    def handle_data(self, data):
        text = Node("#text", {}, self.at)
        text.text = data
        self.at.children.append(text)

    def cards(self):
        return self.root.all("article")

    def card(self, image_id):
        (card,) = [card for card in self.cards() if card.all("h3")[0].said() == image_id]
        return card


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("report"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run):
    return Page(run.report)


def policy(page):
    (meta,) = [m for m in page.root.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
    return dict(part.strip().split(" ", 1) for part in meta.attributes["content"].split(";"))


def test_every_flagged_image_has_its_card_in_order_of_rank(run, page):
    issues = pq.read_table(run.issues).to_pandas().query("issue != 'unreadable'")
    expected = issues.sort_values("rank").drop_duplicates("image_id")["image_id"].tolist()
    expected.remove("dog/copy.png")  # shown in the card of its twin
    shown = [card.all("h3")[0].said() for card in page.cards()]
    assert shown == [name.replace("\u202e", "‹U+202E›") for name in expected]


def test_a_card_says_labels_probabilities_reason_and_how_to_go_on(run, page):
    card = page.card("cat/one object.png")
    given, predicted = card.all("figure")
    assert given.all(kind="role")[0].said() == "Given label"
    assert given.all(kind="what")[0].said() == "cat 0.6 %"
    assert predicted.all(kind="role")[0].said() == "Prediction"
    assert predicted.all(kind="what")[0].said() == "dog 97.0 %"
    assert "200 of 258 fixations" in given.said()
    assert "the network reads dog (97%) and finds next to no evidence for cat" in card.said()
    assert "overlap of the two evidences 12.0 %" in card.said()
    assert card.all("code")[0].said() == f"fixaudit explain {run.path} 'cat/one object.png'"
    assert {chip.said() for chip in card.all(kind="chip")} == {"Mislabeled"}


def test_both_evidences_are_drawn_from_the_numbers(run, page):
    row = pq.read_table(run.evidence).to_pandas().set_index("image_id").loc["cat/one object.png"]
    for panel, prefix in zip(page.card("cat/one object.png").all("figure"), ("label", "pred"), strict=True):
        strongest = sorted(
            zip(row[f"{prefix}_fix_mass"], row[f"{prefix}_fix_x"], row[f"{prefix}_fix_y"], strict=True), reverse=True
        )[:200]
        expected = sorted((round((x + 0.5) * 3.125), round((y + 0.5) * 3.125)) for _, x, y in strongest)
        drawn = re.findall(r"M(\d+) (\d+)h0", " ".join(d.attributes["d"] for d in panel.all("defs")[0].all("path")))
        assert sorted((int(a), int(b)) for a, b in drawn) == expected
        box = panel.all("rect", "line")[0].attributes
        left, top, right, bottom = row[f"{prefix}_box"]
        assert float(box["x"]) == pytest.approx(left * 3.125, abs=0.06)
        assert float(box["y"]) == pytest.approx(top * 3.125, abs=0.06)
        assert float(box["width"]) == pytest.approx((right - left) * 3.125, abs=0.06)
        assert float(box["height"]) == pytest.approx((bottom - top) * 3.125, abs=0.06)
        assert panel.all("path", "l-mask")
        assert len(panel.all(kind="l-heat")[0].all("path")) == 5


def test_one_panel_where_the_prediction_is_the_label(page):
    (panel,) = page.card("han/猫 1.png").all("figure")
    assert panel.all(kind="role")[0].said() == "Given label = prediction"


def test_the_picture_is_embedded_once_and_is_the_image(page):
    card = page.card("cat/one object.png")
    (picture,) = card.all("image")
    kind, _, data = picture.attributes["href"].partition(",")
    assert kind == "data:image/webp;base64"
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.size == (256, 192)
    uses = [use.attributes["href"] for use in card.all("use") if use.attributes["href"].startswith("#i")]
    assert uses == [f"#{picture.attributes['id']}"]
    small = page.card("cat/8x8.png").all("image")[0].attributes["href"].partition(",")[2]
    assert Image.open(BytesIO(base64.b64decode(small))).size == (8, 8)
    assert "crisp" in page.card("cat/8x8.png").all("svg", "image")[0].attributes["class"]


def test_every_picture_has_words_for_those_who_do_not_see_it(page):
    for svg in page.root.all("svg"):
        hidden = svg.attributes.get("aria-hidden") == "true"
        assert hidden or (svg.attributes["role"] == "img" and svg.attributes["aria-label"])
    label = page.card("cat/one object.png").all("svg", "image")[1].attributes["aria-label"]
    assert label.replace("\u202f", " ").startswith("Prediction: dog, probability 97.0 %; 200 of 255 fixations")


def test_hostile_names_are_text_and_nothing_else(page):
    (script,) = page.root.all("script")
    assert script.parent.tag == "body"
    assert not page.root.all("img")
    assert not page.root.all("b", "text")
    for node in page.root.walk():
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"]
    assert page.card("cat/<img src=x onerror=alert(2)>.png").all("figure")[1].all("bdi")[0].said() == SCRIPT
    given, predicted = page.card("cat/' onclick='alert(3) \"&amp;.png").all("figure")
    assert given.all("bdi")[0].said() == SCRIPT
    assert predicted.all("bdi")[0].said() == ARABIC.replace("\u202e", "‹U+202E›")
    assert "\u202e" not in page.source


def test_very_long_names_are_cut_in_the_middle(page):
    (panel,) = [panel for panel in page.root.all("figure", "given") if "a class with a name" in panel.said()]
    name = panel.all("bdi")[0].said()
    assert len(name) == 300 < len(LONG)
    assert "…" in name


def test_nothing_is_fetched_and_only_our_own_style_and_script_run(page):
    rules = policy(page)
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (element,) = page.root.all(tag)
        digest = base64.b64encode(hashlib.sha256(element.children[0].text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    for node in page.root.walk():
        for name in ("href", "src", "action", "data", "srcset"):
            assert re.match(r"data:|#", node.attributes.get(name) or "#"), node.attributes
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://", page.source)


def test_the_head_tells_the_numbers(page):
    facts = {div.all("dt")[0].said(): div.all("dd")[0].said() for div in page.root.all("dl")[0].all("div")}
    assert facts["Images"] == "40"
    assert facts["Labels estimated wrong"] == "4.8 %"
    assert facts["Accuracy"] == "44.7 %"
    counts = {div.all("dt")[0].said(): div.all("dd")[0].said() for div in page.root.all("dl")[1].all("div")}
    assert counts == {
        "Mislabeled": "16",
        "Ambiguous": "5",
        "Adversarial drift": "3",
        "Duplicate conflict": "2",
        "Unreadable": "2",
    }
    assert page.root.all("h1")[0].said() == "dataset"


def test_there_is_a_filter_for_every_issue(page):
    assert list(TITLES) == list(schema.ISSUES)
    assert [i.attributes["value"] for i in page.root.all("input") if i.attributes["type"] == "radio"] == [
        "all",
        *schema.ISSUES,
    ]
    style = page.root.all("style")[0].said()
    for issue in schema.ISSUES:
        assert f"#f-{issue}:checked" in style


def test_the_class_table(run, page):
    (table,) = page.root.all("table")
    rows = table.all("tbody")[0].all("tr")
    assert [head.said() for head in table.all("thead")[0].all("th")] == [
        "Class", "Images", "Mislabeled", "Ambiguous", "Est. wrong", "Flags right", "Accuracy", "Most taken for",
    ]  # fmt: skip
    classes = json.loads(run.summary.read_text())["classes"]
    assert len(rows) == len(classes)
    assert [cell.said() for cell in rows[0].all("td")] == [
        f"{classes[0]['images']}", f"{classes[0]['mislabeled']}", f"{classes[0]['ambiguous']}", "0.0 %", "–", "–", "",
    ]  # fmt: skip
    assert rows[2].all("bdi")[0].said() == SCRIPT
    assert rows[3].all("td")[-1].said() == SCRIPT


def test_possible_shortcuts_are_listed_in_words(run, page):
    (section,) = [one for one in page.root.all("section") if one.attributes.get("id") == "shortcuts"]
    (line,) = section.all("li")
    name = json.loads(run.summary.read_text())["classes"][0]["name"]
    assert line.said() == (
        f"{name} : 72.0 % of the evidence lies in the top left corner of the image (median of 40 images; other classes "
        "5.0 %). Is the object there, or a mark?"
    )


def test_a_run_of_another_version_is_refused_in_one_line(run, tmp_path):
    old = RunFolder(shutil.copytree(run.path, tmp_path / "old"))
    old.summary.write_text(json.dumps(json.loads(old.summary.read_text()) | {"schema": 1}))
    with pytest.raises(RunFolderError, match="was written by another version of fixaudit; run the audit again"):
        write_report(old)


def test_of_very_many_classes_the_worst_are_shown(run):
    write_report(run, Limits(rows=2))
    page = Page(run.report)
    names = [row.all("bdi")[0].said() for row in page.root.all("tbody")[0].all("tr")]
    assert names == ["cat", "dog"]
    said = page.root.all("details")[0].said()
    assert "The 2 classes with most mislabeled images of 6; summary.json has all." in said
    write_report(run)


def test_it_shows_what_a_real_audit_writes(tmp_path):
    run = make_run(tmp_path)
    for path in (run.audit, run.issues, run.summary):
        path.unlink()
    write_audit(run, CLASSES)
    write_issues(run)
    summary = write_summary(run, CLASSES)
    write_report(run)
    page = Page(run.report)
    facts = {div.all("dt")[0].said(): div.all("dd")[0].said() for div in page.root.all("dl")[0].all("div")}
    assert facts["Images"] == "40"
    assert facts["Accuracy"] == percent(summary.accuracy).replace("\u202f", " ")
    counts = {div.all("dt")[0].said(): div.all("dd")[0].said() for div in page.root.all("dl")[1].all("div")}
    assert counts == {TITLES[issue]: str(number) for issue, number in summary.issues.items()}
    assert summary.issues["duplicate_conflict"] == summary.issues["unreadable"] == 2
    issues = pq.read_table(run.issues).to_pandas()
    for card in page.cards():
        reasons = issues[issues["rank"] == int(card.attributes["id"][1:])]["reason"]
        assert " ".join(printable(reasons.item()).split()) in card.said()


def test_unreadable_files_are_listed_with_reasons(page):
    (section,) = page.root.all("section", "unreadable")
    items = [item.said() for item in section.all("li")]
    assert items == ["cat/<b>text<∕b>.jpg not an image", "dog/zero bytes.png the file is empty"]


def test_duplicates_are_shown_with_both_files_and_labels(page):
    twins = [item.said() for item in page.card("cat/copy.png").all(kind="twins")[0].all("li")]
    assert twins == ["cat (this card) cat/copy.png", "dog dog/copy.png"]
    assert len(page.card("cat/copy.png").all("svg", "mini")) == 2
    assert "2 of 2 duplicate conflict" in page.root.all("p", "shown")[0].said()


def test_the_text_says_how_to_go_on(run, page):
    said = page.root.all("footer", "bottom")[0].said()
    assert f"fixaudit explain {run.path} IMAGE_ID" in said
    line = said[said.index("pd.read_parquet") :]
    frame = eval(line, {"pd": pd})
    assert len(frame) == 16


def test_two_reports_of_one_run_are_the_same_bytes(run):
    before = run.report.read_bytes()
    assert write_report(run) == run.report
    assert run.report.read_bytes() == before


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A run of photographs that do not compress, with more flagged images than a small report can hold."""
    folder = tmp_path_factory.mktemp("crowded")
    images = [
        Drawn(f"cat/{n:03d}.png", (256, 256), 0, 1, ("mislabeled",) if n < 50 else ("ambiguous",), 1 - n / 200)
        for n in range(60)
    ]
    run = make_run(folder, images, points=400)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    for image in images:
        noise.save(folder / "dataset" / image.image_id)
    return run


@pytest.mark.parametrize("limit", [150_000, 600_000, 1_000_000])
def test_the_file_keeps_to_its_budget_and_says_what_it_leaves_out(crowded, limit):
    write_report(crowded, Limits(bytes=limit))
    page = Page(crowded.report)
    size = crowded.report.stat().st_size
    assert size <= limit
    cards = [card.all("h3")[0].said() for card in page.cards()]
    assert 0 < len(cards) < 60
    assert size > limit - 75_000  # another card would not have fitted
    mislabeled = [name for name in cards if name < "cat/050.png"]
    ambiguous = [name for name in cards if name >= "cat/050.png"]
    # The kinds take turns, and of each the most suspicious come first.
    assert len(ambiguous) in (len(mislabeled), len(mislabeled) - 1, 10)
    assert mislabeled == [f"cat/{n:03d}.png" for n in range(len(mislabeled))]
    assert ambiguous == [f"cat/{n:03d}.png" for n in range(50, 50 + len(ambiguous))]
    said = page.root.all("p", "shown")[0].said()
    assert f"{len(mislabeled)} of 50 mislabeled, {len(ambiguous)} of 10 ambiguous." in said
    assert "The rest is in issues.parquet" in said


def test_the_number_of_cards_is_limited(crowded):
    write_report(crowded, Limits(cards=7))
    page = Page(crowded.report)
    assert len(page.cards()) == 7
    assert "4 of 50 mislabeled, 3 of 10 ambiguous." in page.root.all("p", "shown")[0].said()


def test_by_default_the_file_is_at_most_15_megabytes():
    assert Limits().bytes <= 15_000_000


def test_only_parts_with_shown_images_are_opened(tmp_path):
    images = [
        Drawn(f"cat/{n:03d}.png", (20, 20), 0, 1 if n < SHARD else 0, ("mislabeled",) if n < SHARD else ())
        for n in range(2 * SHARD)
    ]
    run = make_run(tmp_path, images)
    run.evidence_part(1).write_bytes(b"never read")
    write_report(run)
    assert len(Page(run.report).cards()) == SHARD


def test_a_run_without_flags_is_met_kindly(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0), Drawn("dog/b.png", (20, 20), 1, 1)])
    write_report(run)
    page = Page(run.report)
    assert page.cards() == []
    assert page.root.all("section", "clean")[0].said().startswith("Nothing flagged 2 images audited")
    assert not page.root.all("form")
    assert not page.root.all("section", "unreadable")


def test_a_run_with_unreadable_files_only(tmp_path):
    run = make_run(
        tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0), Drawn("b.png", (0, 0), 0, 0, ("unreadable",), broken="cut off")]
    )
    write_report(run)
    page = Page(run.report)
    assert "Nothing flagged" in page.root.all("main")[0].said()
    assert "1 image audited" in page.root.all("main")[0].said()
    assert not page.root.all("form")
    assert "But 1 file could not be read" in page.root.all("main")[0].said()
    assert [item.said() for item in page.root.all("section", "unreadable")[0].all("li")] == ["b.png cut off"]


def test_an_image_that_is_gone_keeps_its_card(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 1, ("mislabeled",))])
    (tmp_path / "dataset" / "cat" / "a.png").unlink()
    write_report(run)
    card = Page(run.report).card("cat/a.png")
    assert "No picture: the file is gone" in card.all("p", "problem")[0].said()
    assert not card.all("image")
    assert len(card.all("figure")) == 2
    assert card.all(kind="l-dots")


def test_a_run_without_evidence_shows_labels_alone(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 1, ("mislabeled",))])
    part = run.evidence_part(0)
    (row,) = pq.read_table(part).to_pylist()
    row |= {name: None for name in row if "_fix_" in name or "_mask" in name or "_box" in name}
    pq.write_table(pa.Table.from_pylist([row | {"evidence_overlap": None}], schema.EVIDENCE), part)
    write_report(run)
    card = Page(run.report).card("cat/a.png")
    assert [note.said() for note in card.all("p", "note")] == ["no evidence was traced for this class"] * 2
    assert not card.all(kind="l-dots")
    assert "overlap" not in card.said()


def test_a_missing_summary_is_one_clear_line(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0)])
    run.report.write_text("the report before")
    run.summary.unlink()
    with pytest.raises(RunFolderError, match=r"cannot read .*summary\.json") as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert run.report.read_text() == "the report before"
    assert not list(run.path.glob(".*partial"))
