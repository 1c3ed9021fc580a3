import dataclasses
import html.parser
import json
import re

import matplotlib
import pytest

from rfq import errors, report
from rfq.report import claims, load, paper, view
from rfq.report import page as page_lib
from tests.report.conftest import ACT_BITS

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects ids, links and text."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.points: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "data-points":
                self.points.append((tag, value))
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.links.append((tag, name, value or ""))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def source(rendered):
    return (rendered / "report.html").read_text(encoding="utf-8")


def test_every_table_and_figure_is_a_file(rendered):
    tables = {path.name for path in (rendered / "tables").iterdir()}
    names = {
        "claims",
        "claims_numbers",
        "glance",
        "main",
        "arms",
        "beside_the_paper_w8",
        "beside_the_paper_a",
    }
    names |= {"kurtosis", "kurtosis_other", "matched_loss", "paper_kurtosis"}
    names |= {"structure", "noise", "weights_cost", "weights"}
    names |= {"equal_cost", "ranges", "costs", "calibrators"}
    names |= {f"paper_table{i}" for i in (1, 2, 3, 4)}
    assert tables == {f"{name}.{kind}" for name in names for kind in ("md", "csv")}
    figures = {path.name for path in (rendered / "figures").iterdir()}
    names = {"loss_increase", "paper_accuracy", "sqnr", "training", "histograms"}
    names |= {"kurtosis_training", "kurtosis_layers", "kurtosis_layers_other"}
    names |= {"negentropy_layers", "ranges", "histograms_training", "errors"}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_the_page_is_one_file_that_asks_nothing_of_the_network(source):
    page = Page(source)
    assert page.open == []
    outside = [
        (tag, name, value)
        for tag, name, value in page.links
        if not value.startswith(("#", "data:"))
    ]
    # The one citation, which a reader may click and nothing loads.
    assert outside == [("a", "href", "https://arxiv.org/abs/2605.25880")]
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", source)
    assert not {"iframe", "object", "embed"} & set(page.tags)


def test_ids_are_unique_though_many_drawings_share_the_page(source):
    ids = Page(source).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", source)) <= set(ids)


def test_ink_and_arms_follow_a_dark_page(source):
    drawings = re.findall(r'<svg role="img".*?</svg>', source, flags=re.DOTALL)
    assert len(drawings) > 15
    for drawing in drawings:
        # Literal colors would stay dark on dark; markers' and texts' are variables.
        assert not re.search(r"#[0-9a-f]{6}", drawing)
        assert "data-arm=" in drawing
    assert "prefers-color-scheme:dark" in source


def test_the_page_is_complete_without_javascript(source):
    # What scripts hide or show is an option; no table or figure waits for one.
    assert source.index("<script>") > source.index("<footer>")
    assert "innerHTML" not in source


def test_a_pointer_finds_what_is_drawn(source):
    page = Page(source)
    drawings = [json.loads(v) for tag, v in page.points if tag == "svg"]
    assert sum(any(drawn.values()) for drawn in drawings) > 20
    # The panels of increases at 8-bit weights: six widths an arm.
    assert {len(points) for points in drawings[0].values()} == {len(ACT_BITS)}
    for drawn in drawings:
        for points in drawn.values():
            for x, y, said in points:
                # Inside PANEL_INCHES at 72 points an inch.
                assert 0 <= x <= 324
                assert 0 <= y <= 209
                assert re.fullmatch(r"[−0-9.e+]+: [−0-9.e+]+", said)


def test_the_index_leads_to_all_of_the_papers_tables_and_figures(source, rendered):
    page = Page(source)
    start = source.index('class="index"')
    lines = re.findall(r"<li>(.*?)</li>", source[start:], flags=re.DOTALL)
    found = {
        re.sub(r"<b>(.*?)</b>.*", r"\1", line, flags=re.DOTALL).strip(): line
        for line in lines[: len(paper.ITEMS)]
    }
    assert list(found) == list(paper.ITEMS)
    numbers = {re.sub(r" (left|middle|right)", "", name) for name in found}
    assert numbers == {f"Table {i}" for i in (1, 2, 3, 4)} | {
        f"Figure {i}" for i in (1, *range(3, 16))
    }
    # Neither weights of 16 bit nor pairs of temperatures are in the rows.
    missing = {name for name, line in found.items() if "missing: no" in line}
    assert missing == {"Table 3", "Figure 3 middle", "Figure 12", "Figure 13 left"}
    for line in found.values():
        anchors = re.findall(r'href="#([^"]*)"', line)
        assert set(anchors) <= set(page.ids)
        assert anchors or "missing" in line
    assert "The paper's Table 2, as printed." in source
    assert "The paper's Figure 1 middle, Figure 11 left, Figure 15 left." in source


def test_every_claim_has_a_verdict_on_the_page(source):
    for name in claims.CLAIMS:
        card = source[source.index(f'id="claim-{name}"') :]
        said = re.search(r'<span class="verdict[^>]*>([^<]*)<', card)
        assert said is not None
        assert said[1].startswith((f"{name} holds", f"{name} does not", f"{name} not"))


def test_the_page_holds_the_numbers_of_the_tables(rendered, source):
    rows = [json.loads(s) for s in (rendered / "rows.jsonl").read_text().splitlines()]
    losses = [
        r["loss"] for r in rows if r["arm"] == "residual_adamw" and r["spec"] == "A4"
    ]
    assert f"{sum(losses[::2]) / 2:.3f} ±" in source
    for printed in ("0.449", "0.402", "73,998", "0.259"):
        assert printed in source
    for floor in ("unigram 5.301", "bigram 3.702"):
        assert floor in source


def test_provenance_is_at_the_foot(source):
    foot = source[source.index("Where the numbers come from") :]
    for part in ("29eb8e0", "cpu", "jax 0.10.2", "embedded-512", "CC BY 4.0"):
        assert part in foot


def test_one_arm_alone_makes_a_page_that_says_what_is_missing(make, arms):
    directory = make(arms={"residual_adamw": arms["residual_adamw"]})
    shown, printed = view.of(load.load(directory)), paper.load()
    made = page_lib.all_figures(shown, printed)
    judged = claims.judge(shown, printed)
    written = page_lib.all_tables(shown, printed, judged)
    page = page_lib.html_page(shown, made, written, judged)
    assert "residual KL-Shampoo: missing" in page
    assert "not testable from these rows" in page
    Page(page)


def test_almost_nothing_still_makes_a_page(tmp_path):
    row = {"arm": "<b>odd</b>", "spec": "W8A8"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    before = dict(matplotlib.rcParams)
    page = report.run(load.load(tmp_path)).read_text(encoding="utf-8")
    # Drawing leaves a notebook's own matplotlib style alone.
    assert dict(matplotlib.rcParams) == before
    assert page.count("missing") > 20
    assert "<b>odd</b>" not in page
    Page(page)


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="neither rows"):
        report.run(load.load(tmp_path))


def test_the_summary_is_the_main_result_in_100_columns(make, arms):
    del arms["residual_free_muon"]
    arms["residual_adamw"] = dataclasses.replace(arms["residual_adamw"], loss=5.3)
    text = report.summary(load.load(make(arms=arms)))
    assert max(map(len, text.splitlines())) <= 100
    assert "residual-free KL-Shampoo" in text
    assert "+0.420 / +0.420" in text
    assert "! residual AdamW: collapsed" in text
    assert "! residual-free Muon: missing" in text
    assert "bigram 3.702" in text
