"""The page: one file, safe whatever names say, with what is there and what is not."""

import csv
import dataclasses
import html.parser
import json
import re

import pytest

from rfq import errors, report
from rfq.report import claims, evidence, figures, load, page, paper, tables, view
from tests.report.made import ADAMW, KL, MUON, STORY, Made, story, write

VOID = {"meta", "link", "input", "br", "img", "hr"}
EVIL = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects tags, ids and links."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list = []
        self.ids: list = []
        self.tags: list = []
        self.links: list = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [v for name, v in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with its report written; one arm and one task have evil names."""
    folder = tmp_path_factory.mktemp("page")
    arms = {**STORY, f"residual_adamw_{EVIL}": Made(), "=HYPERLINK(1)_adamw": Made()}
    # A path cannot hold a slash: the evil run is one of rows alone.
    evil = {name: arms.pop(name) for name in list(arms) if name not in STORY}
    write(folder, arms)
    from tests.report import made

    rows = [row for name, arm in evil.items() for row in made._rows(name, arm)]
    with (folder / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    report.run(load.read([folder], folder))
    return folder


@pytest.fixture(scope="module")
def source(home):
    return (home / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_asks_nothing_of_the_network(source):
    found = Page(source)
    outside = {link for link in found.links if not link.startswith(("#", "data:"))}
    # The one citation, which a reader may click and nothing loads.
    assert outside == {"https://arxiv.org/abs/2605.25880"}
    assert not re.search(r"@import|url\((?![#\"])", source)
    assert not {"script", "iframe", "object", "embed"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    anchors = {link[1:] for link in found.links if link.startswith("#")}
    assert anchors <= set(found.ids)


def test_names_do_nothing_but_name(home, source):
    assert EVIL not in source
    assert "&lt;script&gt;" in source
    for path in (home / "tables").glob("*.csv"):
        with path.open(newline="") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert not [c for c in cells if c.startswith(("=", "+", "@"))], path
    assert EVIL not in (home / "tables/glance.md").read_text()


def test_the_page_goes_from_the_answer_to_the_papers_own_numbers(source):
    order = [
        "Does the residual connection",
        'class="answer"',
        'class="tally"',
        'id="table-glance"',
        'id="figure-loss_increase"',
        'id="claims"',
        ">Training<",
        ">Tails<",
        ">Rounding error<",
        ">What it costs<",
        "cannot decide",
        'class="index"',
        "own numbers<",
    ]
    places = [source.index(part) for part in order]
    assert places == sorted(places)
    undecided = source.index("cannot decide")
    for name in claims.CLAIMS:
        at = source.index(f'id="claim-{name}"')
        folded = source.rfind("<", 0, at)
        assert (at > undecided) == source.startswith("<details", folded)


def test_every_arm_has_a_box_and_the_index_every_item(source):
    for arm in (*STORY, f"residual_adamw_{EVIL}"):
        assert source.count(f'id="show-{page.style.tag(arm)}"') == 1
        assert f":has(#show-{page.style.tag(arm)}:not(:checked))" in source
        assert f'class="{page.style.tag(arm)}"' in source
    for item in paper.words()["items"]:
        assert f"<b>{item}</b>" in source


def test_every_table_and_figure_is_a_file(home):
    made = page.make(load.read([home], home))
    names = {path.name for path in (home / "tables").iterdir()}
    assert names == {f"{name}.{kind}" for name in made.tables for kind in ("md", "csv")}
    drawn = {name for name, each in made.figures.items() if each.panels}
    files = {path.name for path in (home / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert {"loss_increase", "training", "kurtosis_training", "sqnr"} <= drawn


def test_bits_fall_to_the_right_in_every_figure(home):
    shown = view.of(load.read([home], home))
    everyone = view.with_arms(shown, paper.load().arms)
    made = figures.every(evidence.of(shown), everyone)
    panels = [panel for figure in made.values() for panel in figure.panels]
    drawn = [page.render.Canvas().add_subplot() for _ in panels]
    for panel, axes in zip(panels, drawn, strict=True):
        panel.draw(axes)
    found = [axes for axes in drawn if axes.get_xlabel() == figures.BITS]
    assert len(found) > 10
    assert all(axes.xaxis_inverted() for axes in found)


def test_a_statistic_that_the_report_does_not_know_is_shown(tmp_path):
    write(tmp_path, STORY)
    path = tmp_path / "arms" / KL / "seed-0" / "measures.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["sites"]["attn_in"]["of_tomorrow"] = [0.125, 0.25, 0.5, 1.0]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = page.make(load.read([tmp_path], tmp_path))
    (line,) = made.tables["statistics"].lines
    assert (line["statistic"], line["site"], line["arm"]) == (
        "of_tomorrow",
        "attn_in",
        KL,
    )
    texts = [cell.text for cell in made.tables["statistics"].cells(line)]
    assert texts[-4:] == ["0.125", "0.25", "0.5", "1"]
    assert "of_tomorrow" in page.html_page(made)


@pytest.mark.parametrize("spec", ["W8A8", "FP"])
def test_almost_nothing_still_makes_a_page(tmp_path, spec):
    row = {"arm": "<b>odd</b>", "spec": spec}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = report.run(load.read([tmp_path], tmp_path)).read_text(encoding="utf-8")
    assert found.count("missing") > 20
    assert "<b>odd</b>" not in found
    assert "These runs cannot say" in found
    Page(found)


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="neither rows"):
        load.read([tmp_path], tmp_path)


def test_the_checks_of_the_paper_and_of_our_corrections_are_counted_apart(tmp_path):
    theory = [
        {"claim": "Lemma 1", "verdict": "holds", "source": "paper"},
        {"claim": "Additions dilute", "verdict": "holds", "source": "correction"},
        {"claim": "GELU's gain", "verdict": "does not hold", "source": "correction"},
    ]
    made = tables.theory(view.of(story(tmp_path, theory)))
    counts = [(line["source"], line["checks"], line["holds"]) for line in made.lines]
    assert counts == [("the paper's statements", 1, 1), ("our corrections", 2, 1)]


def test_the_summary_is_the_main_result_in_100_columns(tmp_path):
    text = report.summary(story(tmp_path, **{MUON: {"loss": 5.29}}))
    assert max(map(len, text.splitlines())) <= 100
    assert "residual-free KL-Shampoo" in text
    assert "! residual-free Muon: collapsed" in text


def test_a_run_that_two_directories_hold_counts_once(tmp_path):
    first = write(tmp_path / "a", STORY)
    second = write(tmp_path / "b", {ADAMW: STORY[ADAMW]})
    for home in (first, second):
        path = home / "arms" / ADAMW / "seed-0" / "config.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "fingerprint": "f"})
        )
    alone, both = (load.read(given, tmp_path) for given in ([first], [first, second]))
    assert both.rows.equals(alone.rows)
    assert any("counts once" in note for note in both.notes)


def test_another_config_of_the_name_takes_what_differs_into_its_own(tmp_path):
    first = write(tmp_path / "a", STORY)
    deep = dataclasses.replace(STORY[ADAMW], layers=12)
    second = write(tmp_path / "b", {ADAMW: deep})
    both = load.read([first, second], tmp_path)
    name = f"{ADAMW}_num_layers_12"
    assert name in {run.arm for run in both.runs}
    assert len(both.rows.filter(arm=name)) == len(both.rows.filter(arm=ADAMW))


def test_a_name_made_of_what_differs_is_not_given_to_two(tmp_path):
    deep = dataclasses.replace(STORY[ADAMW], layers=12)
    name = f"{ADAMW}_num_layers_12"
    first = write(tmp_path / "a", STORY)
    second = write(tmp_path / "b", {ADAMW: deep, name: STORY[ADAMW]})
    both = load.read([first, second], tmp_path)
    layers = {run.arm: run.experiment["model"]["num_layers"] for run in both.runs}
    assert (layers[ADAMW], layers[name], layers[f"{ADAMW}_b"]) == (4, 4, 12)


ROW = {"arm": "a", "seed": 0, "spec": "FP", "num_layers": 6, "config_fingerprint": "f"}


@pytest.mark.parametrize("count", [1, 2], ids=["one source", "two sources"])
def test_rows_of_several_configs_are_told_apart(tmp_path, count):
    def named(*changes):
        rows = [ROW, *({**ROW, **change} for change in changes)]
        folders = [tmp_path / str(number) for number in range(count)]
        for folder, part in zip(folders, [rows[:-1], rows[-1:]], strict=False):
            folder.mkdir(exist_ok=True)
            lines = rows if count == 1 else part
            (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return load.read(folders, tmp_path).rows.select("arm", "seed").rows()

    other = {"config_fingerprint": "g"}
    assert named({**other, "seed": 1}) == [("a", 0), ("a", 1)]
    assert named({**other, "num_layers": 12}) == [("a", 0), ("a_num_layers_12", 0)]
    deep = {"config_fingerprint": "h", "seed": 1, "num_layers": 12}
    assert named(deep) == [("a", 0), ("a_num_layers_12", 1)]
    # Where nothing that is recorded differs, the source does, and then the fingerprint.
    assert named(other)[1] == (f"a_{count - 1}" if count > 1 else "a_0", 0)


def test_what_was_measured_on_other_data_stands_apart(tmp_path):
    for number, data in enumerate(("d", "e")):
        (tmp_path / data).mkdir()
        rows = [{**ROW, "data_fingerprint": data, "loss": 3.0 + number}] * (2 - number)
        rows = [{**row, "seed": seed} for seed, row in enumerate(rows)]
        text = "\n".join(map(json.dumps, rows)) + "\n"
        (tmp_path / data / "rows.jsonl").write_text(text)
    found = load.read([tmp_path / "e", tmp_path / "d"], tmp_path / "out")
    (other,) = found.others
    assert (found.data, other.data) == ("d", "e")
    assert {*found.rows["loss"]} == {3.0} and {*other.rows["loss"]} == {4.0}
    assert not {*found.rows["arm"]} & {*other.rows["arm"]}
    report.run(found)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "On other data: e" in text
    assert (tmp_path / "out" / "tables" / "glance_e.csv").is_file()
