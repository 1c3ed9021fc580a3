import json
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from rfq.report import (
    activations,
    curves,
    figures,
    load,
    page,
    paper,
    precision,
    style,
    training,
    view,
)


def shown(directory):
    return view.of(load.load(directory))


def drawn(panel):
    """The axes of a panel, drawn."""
    ax = Canvas().subplots()
    panel.draw(ax)
    return ax


def line_of(ax, arm):
    """The points of an arm's data line (leaders of labels have axes coordinates)."""
    lines = [
        line
        for line in ax.get_lines()
        if line.get_gid() == figures.tag(arm) and line.get_transform() == ax.transData
    ]
    return lines[0].get_xydata()


NAMES = [
    "loss_increase",
    "accuracy",
    "paper_accuracy",
    "sqnr",
    "errors",
    "training",
    "kurtosis_training",
    "temperature",
    "ranges",
    "kurtosis_layers",
    "negentropy_layers",
    "kurtosis_layers_other",
    "histograms",
    "histograms_training",
]


def test_every_kind_of_figure_is_made_and_says_how_to_read_it(make):
    found = page.all_figures(shown(make()), paper.load())
    assert [figure.name for figure in found] == NAMES
    for figure in found:
        assert figure.guide
        # The demo asks no tasks and has no pair of temperatures.
        assert bool(figure.missing) == (figure.name in ("accuracy", "temperature"))
        assert bool(figure.panels) != bool(figure.missing)
        for panel in figure.panels:
            ax = drawn(panel)
            assert ax.get_xlabel(), panel
            assert ax.get_ylabel(), panel
            # An arm has one color in every figure.
            for line in ax.get_lines():
                arm = (line.get_gid() or "").removeprefix("arm:")
                if arm:
                    assert line.get_color() == style.ARMS[arm].light


def test_without_files_a_figure_says_what_is_missing(make):
    directory = make()
    for path in directory.glob("arms/*/seed-*/**/*.json*"):
        path.unlink()
    row = {"arm": "residual_adamw", "seed": 0, "spec": "FP", "loss": 3.4}
    (directory / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for figure in page.all_figures(shown(directory), paper.load()):
        assert figure.name == "paper_accuracy" or (figure.missing and not figure.panels)


@pytest.mark.parametrize("stream", ["branch", "in_place"])
def test_drawn_increases_are_those_of_the_rows(make, stream):
    found = shown(make())
    panels = {panel.name: panel for panel in precision.increase_figure(found).panels}
    ax = drawn(panels[f"w8_{stream}"])
    for arm in found.arms:
        points = dict(line_of(ax, arm))
        assert len(points) == 6
        for bits, value in points.items():
            at = found.precision(f"W8A{bits:.0f}")
            assert value == found.increase(arm, at, stream).value


def _luminance(color):
    """Relative luminance of a hex color (WCAG 2)."""
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(one, other):
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_thirty_unknown_arms_look_different_and_stand_out(make):
    found = view.with_arms(shown(make()), [f"mine_{i}" for i in range(30)])
    looks = style.looks(found).values()
    assert len(looks) == 34
    assert len({(look.light, look.marker) for look in looks}) == 34
    for look in looks:
        # WCAG 2 asks 3:1 of graphics; the pages are white and #15171a.
        assert _contrast(look.light, "#ffffff") >= 3
        assert _contrast(look.dark, "#15171a") >= 3


def test_dashes_tell_the_connection_whatever_the_name(make, arms):
    directory = make(
        arms={"gated": arms["residual_adamw"], "mine_free": arms["residual_adamw"]}
    )
    looks = style.looks(view.with_arms(shown(directory), ["unknown"]))
    found = {arm: look.line for arm, look in looks.items()}
    assert (found["gated"], found["mine_free"]) == ("--", "-")
    assert found["unknown"] == "-."


def test_a_gaussian_on_a_min_max_grid_has_the_tabulated_sqnr():
    # Exact integrals at half-range 5.467 with a rounded zero point, which costs up to
    # half a step at one end; high resolution leaves that out: .02 dB at 12 bits.
    for bits, db in ((4, 13.54), (6, 26.00), (8, 38.15), (10, 50.21), (12, 62.24)):
        assert precision.gaussian_sqnr_db(bits, 5.467) == pytest.approx(db, abs=0.025)


@pytest.mark.parametrize(
    ("count", "half_range"),
    [(512, 3.044), (32768, 4.134), (32768 * 64, 5.008), (32768 * 768, 5.467)],
)
def test_expected_extreme_of_a_gaussian_sample(count, half_range):
    # The Gumbel limit is approached like 1 / log n: .02 at 512, .002 at 25 million.
    assert precision.gaussian_half_range(count) == pytest.approx(half_range, abs=0.025)


def test_a_histogram_is_a_density_of_the_layer_at_two_thirds(make):
    found = shown(make())
    made = activations.histogram(
        found.runs("residual_adamw")[0].statistics,
        "attn_norm_in",
        activations.middle_layer,
    )
    assert made is not None
    assert (made.layer, made.depth) == (4, 6)
    assert float(np.sum(made.density * np.diff(made.edges))) == pytest.approx(1.0)
    # Stored as x / rms(x) of a shifted sample; drawn with mean 0 and deviation 1. A
    # bin is up to .25 RMS wide: within-bin spread adds .25**2 / 12 to the variance,
    # and the wide tail bins a little more.
    centers = (made.edges[1:] + made.edges[:-1]) / 2
    weights = made.density * np.diff(made.edges)
    assert float(np.sum(weights * centers)) == pytest.approx(0.0, abs=0.01)
    assert float(np.sum(weights * centers**2)) == pytest.approx(1.0, abs=0.05)
    # The paper's figure 4 shows layer 16 of 24.
    assert activations.middle_layer(24) + 1 == 16


def test_wall_time_follows_from_tokens_per_second(make):
    found = shown(make())
    # 16 x 64 tokens a step, 819,200 tokens in 80 s.
    seconds = curves.train_seconds(found.runs("residual_adamw")[0])
    assert seconds[-1] == pytest.approx(80.0)
    assert np.all(np.diff(seconds) > 0)


def test_wall_time_is_missing_not_zero_without_a_speed(make):
    directory = make()
    path = directory / "arms" / "residual_adamw" / "seed-0" / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 5.0}\n{"step": 20, "loss": 4.0}\n')
    run = shown(directory).runs("residual_adamw")[0]
    assert curves.train_seconds(run) == [None, None]


def test_recorded_seconds_are_used_as_they_are(make):
    directory = make()
    path = directory / "arms" / "residual_adamw" / "seed-0" / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 5.0, "seconds": 2.5}\n')
    assert curves.train_seconds(shown(directory).runs("residual_adamw")[0]) == [2.5]


@hypothesis.given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6),
    st.floats(0.01, 0.16),
)
def test_labels_never_touch_keep_their_order_and_stay_inside(centers, height):
    placed = figures.spread(centers, [height] * len(centers))
    order = sorted(range(len(centers)), key=lambda i: centers[i])
    gaps = np.diff([placed[i] for i in order])
    # Six labels of .16 fit into 1; 1e-9 is float32-free rounding of the sums.
    assert np.all(gaps >= height - 1e-9)
    assert min(placed) >= height / 2 - 1e-9
    assert max(placed) <= 1 - height / 2 + 1e-9


@pytest.mark.parametrize("count", [1, 4, 10, 20, 30])
def test_names_of_any_number_of_arms_fit_beside_the_axes(count):
    # The longest of a real family, two lines at most sizes.
    texts = ["residual-free KL-Shampoo beta 1.1"] * count
    size, heights = figures.label_sizes(texts)
    assert sum(heights) <= 1.0
    assert size >= (8.5 if count < 5 else 3.0)


def test_labels_that_do_not_collide_stay_where_their_lines_end():
    assert figures.spread([0.8, 0.2, 0.5], [0.1] * 3) == pytest.approx([0.8, 0.2, 0.5])


def test_histograms_over_training_are_of_the_papers_depths(make):
    figure = activations.evolution_figure(shown(make()), paper.load())
    # Layers 8, 16 and 22 of 24 are 2, 4 and 6 of 6; four of nine measured steps.
    steps = (0, 300, 500, 800)
    assert [panel.name for panel in figure.panels] == [
        f"layer{layer}_step{step}" for layer in (8, 16, 22) for step in steps
    ]
    titles = [panel.title for panel in figure.panels[::4]]
    assert titles == [f"layer {layer} of 6, step 0" for layer in (2, 4, 6)]
    patches = [p for p in drawn(figure.panels[0]).patches if p.get_gid()]
    assert len(patches) == 4
    values, edges, _ = patches[0].get_data()
    # A Gaussian was counted, over bins a quarter wide.
    density = np.exp(-(((edges[1:] + edges[:-1]) / 2) ** 2) / 2) / (2 * np.pi) ** 0.5
    inside = np.abs(edges[1:]) < 3
    np.testing.assert_allclose(values[inside], density[inside], rtol=0.03)


def test_histograms_over_training_say_their_kurtosis_depth_and_who_is_absent(make):
    directory = make()
    for arm, depth in (("residual_adamw", 4), ("residual_free_muon", 0)):
        path = directory / "arms" / arm / "seed-0" / "measures.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            site = record["sites"]["attn_norm_in"]
            for field, values in site.items():
                site[field] = values[:depth]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = activations.evolution_figure(shown(directory), paper.load())
    panel = figure.panels[3]
    # Layer 8 of 24 is the first of four and the second of six.
    assert panel.title == "at 8/24 of each depth, step 800"
    said = {text.get_gid(): text.get_text() for text in drawn(panel).texts}
    assert set(said) == {
        figures.tag(arm) for arm in shown(directory).arms if arm != "residual_free_muon"
    }
    # Made up: 14.9 in the first layer and .4 of it in the last of six.
    gamma = 14.9 * np.linspace(1.0, 0.4, 6)[0]
    assert f"γ\u00a0{gamma:.2f}" in said[figures.tag("residual_adamw")].replace(
        "\n", " "
    )
    assert figure.notes == ["residual-free Muon: missing in 12 of 12 panels."]


def test_negentropy_over_training_is_drawn(make, arms):
    panels = {
        p.name: p for p in training.kurtosis_training_figure(shown(make())).panels
    }
    points = dict(line_of(drawn(panels["negentropy"]), "residual_adamw"))
    assert points[800] == pytest.approx(0.002 * arms["residual_adamw"].kurtosis)
    assert points[0] == 0.0


def test_kurtosis_by_layer_has_the_spread_of_its_seeds(make):
    directory = make(seeds=(0, 1))
    path = directory / "arms/residual_adamw/seed-1/measures.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    site = records[-1]["sites"]["attn_norm_in"]
    site["excess_kurtosis"] = [x + 2.0 for x in site["excess_kurtosis"]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    panel = activations.layers_figure(
        shown(directory),
        "excess_kurtosis",
        sites=("attn_norm_in",),
        name="kurtosis_layers",
        title="",
    ).panels[0]
    ax = drawn(panel)
    (corners,) = bands_of(ax, "residual_adamw")
    # Values 14.9 and 16.9 of the first layer: 15.9, and a deviation of sqrt(2).
    first = corners[corners[:, 0] == 1.0][:, 1]
    assert (first.min(), first.max()) == pytest.approx((15.9 - 2**0.5, 15.9 + 2**0.5))


def test_ranges_are_the_largest_magnitudes(make, arms):
    found = shown(make())
    step, layer = training.ranges_figure(found).panels
    points = dict(line_of(drawn(step), "residual_adamw"))
    assert points[800] == pytest.approx(4.0 + arms["residual_adamw"].kurtosis)
    assert points[0] == 4.0
    shape = [y for _, y in line_of(drawn(layer), "residual_adamw")]
    assert shape == sorted(shape, reverse=True)


def test_the_temperature_is_shown_in_pairs_that_differ_in_nothing_else(make):
    directory = make()
    home = directory / "arms" / "residual_free_muon"
    twin = directory / "arms" / "residual_free_muon_beta"
    shutil.copytree(home, twin)
    for arm, beta in ((home, 1.0), (twin, 1.1)):
        path = arm / "seed-0" / "config.json"
        config = json.loads(path.read_text())
        config["experiment"]["model"]["beta"] = beta
        path.write_text(json.dumps(config))
    figure = training.temperature_figure(shown(directory), paper.load())
    assert [p.name for p in figure.panels] == [f"{home.name}_{twin.name}"]
    ax = drawn(figure.panels[0])
    assert len(line_of(ax, home.name)) == len(line_of(ax, twin.name)) == 80
    # One whose logged losses are not finite has no line.
    logged = twin / "seed-0" / "metrics.jsonl"
    records = [json.loads(line) for line in logged.read_text().splitlines()]
    logged.write_text("".join(json.dumps({**r, "loss": None}) + "\n" for r in records))
    (panel,) = training.temperature_figure(shown(directory), paper.load()).panels
    assert twin.name not in {
        str(line.get_gid()).removeprefix("arm:") for line in drawn(panel).get_lines()
    }
    config["experiment"]["model"]["width"] = 32
    path.write_text(json.dumps(config))
    assert training.temperature_figure(shown(directory), paper.load()).missing


def _asked(bits, **changes):
    """A row of tasks.jsonl: ten points above 0.3 a bit."""
    return {
        "spec": f"W8A{bits}" if bits else "FP",
        "weight_bits": 8 if bits else None,
        "act_bits": bits,
        "stream": "branch",
        "taps": "paper",
        "calibrator": "min_max",
        "calibration_seed": 0,
        "questions": "abc",
        "avg": 0.4 - 0.01 * (8 - (bits or 8)),
        "avg_se": 0.005,
        **changes,
    }


def _ask(directory, arm, rows):
    home = directory / "arms" / arm / "seed-0" / "quantize"
    (home / "tasks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def bands_of(ax, arm):
    """The corners of an arm's shaded intervals."""
    return [
        path.vertices
        for shade in ax.collections
        if shade.get_gid() == figures.tag(arm)
        for path in shade.get_paths()
    ]


def test_our_accuracy_is_drawn_by_width_where_there_are_tasks(make):
    directory = make()
    _ask(directory, "residual_adamw", [_asked(bits) for bits in (None, 8, 6, 4)])
    (panel,) = precision.accuracy_figure(shown(directory)).panels
    ax = drawn(panel)
    points = dict(line_of(ax, "residual_adamw"))
    assert points == pytest.approx({8: 0.40, 6: 0.38, 4: 0.36})
    (corners,) = bands_of(ax, "residual_adamw")
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.355, 0.405))


def test_an_accuracy_without_a_standard_error_has_no_band(make):
    directory = make()
    rows = [_asked(bits, avg_se=None) for bits in (8, 6, 4)]
    _ask(directory, "residual_adamw", rows)
    (panel,) = precision.accuracy_figure(shown(directory)).panels
    ax = drawn(panel)
    assert len(line_of(ax, "residual_adamw")) == 3
    assert bands_of(ax, "residual_adamw") == []


def test_accuracies_of_other_settings_and_questions_are_not_mixed(make):
    directory = make()
    ours = [_asked(bits) for bits in (8, 6, 4)]
    others = [
        _asked(bits, avg=0.9, **change)
        for bits in (8, 6, 4)
        for change in (
            {"taps": "full"},
            {"calibrator": "mse"},
            {"questions": "fewer"},
        )
    ]
    draws = [
        _asked(bits, avg=row["avg"] + 0.02, calibration_seed=1)
        for bits, row in zip((8, 6, 4), ours, strict=True)
    ]
    _ask(directory, "residual_adamw", [*ours, *others, *draws])
    (panel,) = precision.accuracy_figure(shown(directory)).panels
    points = dict(line_of(drawn(panel), "residual_adamw"))
    assert points == pytest.approx({8: 0.41, 6: 0.39, 4: 0.37})


def test_one_placement_alone_has_its_accuracies(make):
    directory = make()
    rows = [_asked(bits, stream="in_place") for bits in (8, 6, 4)]
    _ask(directory, "residual_adamw", rows)
    (panel,) = precision.accuracy_figure(shown(directory)).panels
    assert panel.name == "w8_in_place"
    assert len(line_of(drawn(panel), "residual_adamw")) == 3


def test_sqnr_by_layer_is_of_the_pages_setting(make):
    directory = make()
    path = directory / "arms/residual_adamw/seed-0/quantize/sites.jsonl"
    first = json.loads(path.read_text().splitlines()[-1])
    other = {
        **first,
        "calibrator": "mse",
        "sites": {"attn_norm_in": {"sqnr_db": [99.0] * 6}},
    }
    path.write_text(json.dumps(other) + "\n" + path.read_text())
    panels = {p.name: p for p in precision.sqnr_figure(shown(directory)).panels}
    points = line_of(drawn(panels["site_attn_norm_in"]), "residual_adamw")
    assert points[:, 1].max() < 99.0


def test_distortion_is_drawn_for_every_weight_width(make):
    directory = make()
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wide = [
        {**row, "spec": f"W16A{row['act_bits']}", "weight_bits": 16}
        for row in rows
        if row["weight_bits"] == 8
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *wide)))
    figure = precision.sqnr_figure(shown(directory))
    names = [panel.name for panel in figure.panels]
    for width in ("w8", "w16", "a"):
        assert {f"sqnr_{width}", f"nmse_{width}", f"gap_{width}"} <= set(names)
    assert figure.stands_for == [
        "Figure 1 middle",
        "Figure 11 left",
        "Figure 13 left",
        "Figure 15 left",
    ]
    assert (
        "Figure 13 left" not in precision.sqnr_figure(shown(make(steps=400))).stands_for
    )


def test_the_papers_accuracy_has_its_three_tables_and_their_baselines(make):
    printed = paper.load()
    panels = precision.paper_figure(shown(make()), printed).panels
    assert [panel.name for panel in panels] == ["table2", "table3", "table4"]
    for panel in panels:
        ax = drawn(panel)
        every = [row.avg for row in printed.tables[panel.name]]
        low, high = ax.get_ylim()
        assert low < min(every)
        assert high > max(every)
        for arm in (
            "residual_adamw",
            "residual_kl_shampoo",
            "residual_free_kl_shampoo",
        ):
            flat = [
                line.get_ydata()[0]
                for line in ax.get_lines()
                if line.get_gid() == figures.tag(arm) and line.get_linestyle() == ":"
            ]
            assert flat == [printed.accuracy(panel.name, arm, "FP")]


def test_the_error_is_drawn_by_layer_and_against_bits_in_both_placements(make, arms):
    panels = {p.name: p for p in precision.error_figure(shown(make())).panels}
    assert list(panels) == [
        "w8a6_branch",
        "w8a6_in_place",
        "w8a4_branch",
        "w8a4_in_place",
        "head_w8_branch",
        "head_w8_in_place",
    ]
    # The synthetic error doubles by layer; the head is the seventh point of six layers.
    ax = drawn(panels["w8a4_in_place"])
    points = line_of(ax, "residual_adamw")
    assert points[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(points[1:, 1] / points[:-1, 1], 2.0)
    assert [text.get_text() for text in ax.get_xticklabels()][-1] == "head"
    head = dict(line_of(drawn(panels["head_w8_in_place"]), "residual_adamw"))
    assert (
        head[4]
        == points[-1, 1]
        != line_of(drawn(panels["w8a4_branch"]), "residual_adamw")[-1, 1]
    )


def test_seeds_that_differ_make_a_band_and_one_seed_makes_none(make):
    directory = make(seeds=(0, 1))
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["sqnr_db"] is not None:
            row["sqnr_db"] += row["seed"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seeds, count in ((2, 1), (1, 0)):
        kept = [row for row in rows if row["seed"] < seeds]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        panels = {p.name: p for p in precision.sqnr_figure(shown(directory)).panels}
        ax = drawn(panels["sqnr_w8"])
        assert len(bands_of(ax, "residual_adamw")) == count
