import csv
import io
import json
import math
import statistics

import pytest

from rfq.report import claims, load, page, paper, tables, view


def shown(directory):
    return view.of(load.load(directory))


def every_table(directory):
    found, printed = shown(directory), paper.load()
    return page.all_tables(found, printed, claims.judge(found, printed))


def records(table):
    return list(csv.DictReader(io.StringIO(tables.comma_separated(table))))


def test_the_main_table_holds_exactly_the_numbers_of_the_rows(make):
    directory = make()
    found = {
        (r["precision"], r["arm"]): r
        for r in records(tables.main_table(shown(directory)))
    }
    rows = [json.loads(s) for s in (directory / "rows.jsonl").read_text().splitlines()]
    checked = 0
    for row in rows:
        if row["spec"] == "FP":
            record = found[f"FP, {row['compute_dtype']}", row["arm"]]
            assert float(record["loss_branch"]) == row["loss"]
            assert float(record["loss_increase_in_place"]) == row["loss_increase"]
            continue
        record = found[row["spec"], row["arm"]]
        for field in ("loss", "loss_increase"):
            assert float(record[f"{field}_{row['stream']}"]) == row[field]
        for end in ("lo", "hi"):
            ours = float(record[f"loss_increase_{row['stream']}_{end}"])
            assert ours == row[f"loss_increase_{end}"]
        assert float(record["sqnr_db"]) == row["sqnr_db"]
        checked += 1
    assert checked == 4 * 24
    # 13 settings of each arm (FP twice), and no other line.
    assert len(found) == 4 * 14


def test_seeds_are_averaged_and_their_spread_is_given(make):
    directory = make(seeds=(0, 1, 2))
    found = records(tables.main_table(shown(directory)))
    rows = [json.loads(s) for s in (directory / "rows.jsonl").read_text().splitlines()]
    for record in found:
        if record["precision"] != "W8A6":
            continue
        losses = [
            row["loss"]
            for row in rows
            if row["arm"] == record["arm"]
            and row["spec"] == "W8A6"
            and row["stream"] == "branch"
        ]
        assert len(losses) == 3
        mean, sd = statistics.fmean(losses), statistics.stdev(losses)
        assert float(record["loss_branch"]) == pytest.approx(mean, rel=1e-12)
        assert float(record["loss_branch_sd"]) == pytest.approx(sd, rel=1e-12)


def test_precisions_stand_in_the_order_of_the_papers_tables(make):
    found = records(tables.main_table(shown(make())))
    order = list(dict.fromkeys(record["precision"] for record in found))
    eight = [f"W8A{bits}" for bits in (16, 12, 10, 8, 6, 4)]
    alone = [f"A{bits}" for bits in (16, 12, 10, 8, 6, 4)]
    assert order == ["FP, bfloat16", "FP, float32", *eight, *alone]


def test_what_is_not_in_the_rows_is_missing_never_zero(make):
    directory = make()
    path = directory / "rows.jsonl"
    kept = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["arm"] == "residual_adamw" and row["spec"] == "W8A4":
            continue
        if row["arm"] == "residual_kl_shampoo" and row["spec"] == "W8A4":
            for field in ("loss", "loss_increase"):
                row[field] = None
            row["nonfinite"] = ["loss", "loss_increase"]
            del row["sqnr_db"]
        kept.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    table = tables.main_table(shown(directory))
    lines = {(line.group, line.arm): line for line in table.lines}
    absent = [cell.text for cell in lines["W8A4", "residual_adamw"].cells[2:]]
    assert absent == ["missing"] * 5
    broken = [cell.text for cell in lines["W8A4", "residual_kl_shampoo"].cells[2:]]
    assert broken == ["not finite"] * 4 + ["missing"]
    record = next(
        r
        for r in records(table)
        if (r["precision"], r["arm"]) == ("W8A4", "residual_adamw")
    )
    for end in ("", "_lo", "_hi"):
        assert record[f"loss_increase_branch{end}"] == "missing"


def test_a_seed_that_is_not_finite_is_said_in_the_cell_and_never_best(make):
    directory = make(seeds=(0, 1))
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if (row["arm"], row["spec"], row["seed"]) == ("residual_kl_shampoo", "W8A4", 1):
            row |= {"loss": None, "loss_increase": None}
            row["nonfinite"] = ["loss", "loss_increase"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = shown(directory)
    table = tables.main_table(found)
    lines = {(line.group, line.arm): line for line in table.lines}
    cells = lines["W8A4", "residual_kl_shampoo"].cells[2:6]
    assert all(cell.text.endswith("; a seed not finite") for cell in cells)
    assert {cell.mark for cell in cells} == {"bad"}
    assert cells[1].data["loss_increase_branch_left_out"] == "a seed, not finite"
    (glance,) = [
        line.cells[-1]
        for line in tables.glance_table(found).lines
        if line.arm == "residual_kl_shampoo"
    ]
    assert "a seed not finite" in glance.text
    increase = found.increase("residual_kl_shampoo", found.precision("W8A4"), "branch")
    assert increase.num_seeds == 1


def test_rows_of_a_foreign_version_make_every_table(make):
    directory = make()
    rows = [{"arm": "other", "spec": "W4A4"}, {"arm": "other", "spec": "FP", "loss": 3}]
    (directory / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    (directory / "context.json").unlink()
    for table in every_table(directory):
        tables.markdown(table)
        tables.comma_separated(table)


def test_bold_marks_an_interval_below_all_others_and_no_tie(make):
    table = tables.main_table(shown(make()))
    lines = {(line.group, line.arm): line for line in table.lines}
    # Branch, four bits: residual KL-Shampoo is far below the others.
    marks = [
        lines["W8A4", arm].cells[3].mark
        for arm in view.ARM_ORDER
        if ("W8A4", arm) in lines
    ]
    assert marks.count("best") == 1
    assert lines["W8A4", "residual_kl_shampoo"].cells[3].mark == "best"
    # Sixteen bits cost nothing: the intervals overlap and nobody is best.
    assert all(lines["W8A16", arm].cells[3].mark == "" for arm in ("residual_adamw",))


def test_markdown_has_a_cell_for_every_column(make):
    for table in every_table(make()):
        body = [s for s in tables.markdown(table).splitlines() if s.startswith("|")]
        assert len(body) == 2 + len(table.lines)
        assert {line.count("|") for line in body} == {len(table.header) + 1}, table.name


def test_the_papers_numbers_are_the_printed_ones():
    printed = paper.load()
    # Table 1 and section 5: .449 to .369 at W8A8; +2.7 points at W8A8, +6.6 at W8A6.
    assert printed.accuracy("table1", "residual_adamw", "FP") == 0.449
    assert printed.accuracy("table1", "residual_adamw", "W8A8") == 0.369
    for spec, points in (("W8A8", 2.7), ("W8A6", 6.6)):
        free = printed.accuracy("table1", "residual_free_kl_shampoo", spec)
        residual = printed.accuracy("table1", "residual_kl_shampoo", spec)
        assert free is not None
        assert residual is not None
        assert 100 * (free - residual) == pytest.approx(points, abs=1e-9)
    assert [len(printed.tables[f"table{i}"]) for i in (1, 2, 3, 4)] == [12, 21, 21, 21]


def test_the_papers_averages_are_the_means_of_its_tasks():
    # Both are printed to three decimals: the mean of eight rounded scores is off by at
    # most .0005, the average by another .0005.
    for rows in paper.load().tables.values():
        for row in rows:
            assert math.isclose(statistics.fmean(row.scores), row.avg, abs_tol=0.001)


def test_kurtosis_is_put_beside_the_papers_at_the_same_relative_depth():
    # The paper's layers 8, 16, 22 of 24.
    ours = [tables.same_depth(layer, 24, 6) for layer in (8, 16, 22)]
    assert ours == [2, 4, 6]
    assert [tables.same_depth(layer, 24, 24) for layer in (1, 24)] == [1, 24]
    assert tables.same_depth(1, 24, 2) == 1


def test_the_arms_table_says_what_an_arm_is_where_its_name_does_not(make, arms):
    directory = make(arms={"layer_norm": arms["residual_adamw"]})
    path = directory / "arms/layer_norm/seed-0/config.json"
    config = json.loads(path.read_text())
    config["experiment"]["model"]["norm"] = "layer_norm"
    config["experiment"]["optimizer"]["name"] = "kl_shampoo"
    path.write_text(json.dumps(config))
    (directory / "context.json").unlink()
    (line,) = tables.arms_table(shown(directory), paper.load()).lines
    texts = [cell.text for cell in line.cells]
    for word in ("residual", "KL-Shampoo", "layer norm"):
        assert word in texts


def test_kurtosis_has_the_spread_of_its_seeds_under_a_pointer(make):
    directory = make(seeds=(0, 1))
    table = tables.kurtosis_table(shown(directory), sites=("attn_in",), name="k")
    cell = table.lines[0].cells[3]
    assert cell.text == "11.92"
    assert cell.title == "11.92 ± 0.00"
    assert cell.data["layer_1_seeds"] == 2


def test_matched_loss_is_the_first_step_that_reached_it(make):
    found = shown(make())
    target = tables.matched_loss(found)
    assert target is not None
    for arm in found.arms:
        point = tables.matched_point(found, arm, target)
        assert point is not None
        measures = found.runs(arm)[0].measures
        before = [m for m in measures if m["step"] < point["step"]]
        assert point["loss"] <= target
        assert all(m["loss"] > target for m in before)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0161, "+0.016"), (-0.0161, "−0.016"), (0.0004, "0.000"), (-0.0004, "0.000")],
)
def test_a_rounded_zero_has_no_sign(value, text):
    assert tables.signed(value) == text
