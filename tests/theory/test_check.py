"""A verdict follows from the numbers, and flips when they change."""

import dataclasses
import math

import pytest

from rfq.theory import activations, mixing, residual, updates
from rfq.theory.check import Check, Estimate, exact


def check(**changes):
    given = Check(
        where="C.2",
        statement="gamma_y = gamma_u / d",
        predicted=0.1875,
        measured=Estimate(0.19, 0.001),
        tolerance=0.0,
        note="rows are not flat",
    )
    return dataclasses.replace(given, **changes)


def test_agreement_is_four_standard_errors_beside_the_tolerance():
    assert check().verdict == "holds"
    assert check(measured=Estimate(0.1875 + 0.0039, 0.001)).verdict == "holds"
    assert check(measured=Estimate(0.1875 + 0.0041, 0.001)).verdict == "does not hold"
    more = check(measured=Estimate(0.1875 + 0.0041, 0.001), tolerance=0.001)
    assert more.verdict == "holds"


def test_a_correction_counts_only_where_the_paper_fails_and_it_does_not():
    right = check(measured=exact(0.5), corrected=0.5)
    assert right.verdict == "holds with a correction"
    assert check(measured=exact(0.5), corrected=0.4).verdict == "does not hold"
    assert check(measured=exact(0.1875), corrected=0.5).verdict == "holds"


@pytest.mark.parametrize(
    ("relation", "below", "above"),
    [("<=", "holds", "does not hold"), (">=", "does not hold", "holds")],
)
def test_bounds_have_one_side(relation, below, above):
    bound = check(relation=relation)
    assert dataclasses.replace(bound, measured=exact(0.1)).verdict == below
    assert dataclasses.replace(bound, measured=exact(0.3)).verdict == above


@pytest.mark.parametrize("relation", ["=", "<=", ">="])
def test_what_could_not_be_measured_does_not_hold(relation):
    nothing = check(relation=relation, measured=exact(math.nan), corrected=0.5)
    assert nothing.verdict == "does not hold"


@pytest.mark.parametrize(
    "claim",
    [
        activations.definition_1,
        mixing.lemma_6,
        residual.lemma_3,
        updates.sign_of_the_cross_term,
    ],
)
def test_a_wrong_prediction_flips_the_verdict_of_a_real_check(claim):
    for given in claim():
        if given.verdict != "holds":
            continue
        # A prediction on the far side of what was measured, beyond what is allowed.
        side = {"=": 1.0, "<=": -1.0, ">=": 1.0}[given.relation]
        wrong = given.measured.value + side * (2.0 * given.allowed + 1e-6)
        flipped = dataclasses.replace(given, predicted=wrong)
        assert flipped.verdict == "does not hold"


def test_the_reason_names_what_the_paper_missed_only_where_it_fails():
    assert "rows are not flat" not in check().why
    assert check(measured=exact(0.5)).why.endswith("rows are not flat")
    corrected = check(measured=exact(0.5), corrected=0.5)
    assert corrected.why == "= 0.5: rows are not flat"
