"""Every verdict follows the rows: they say the opposite, and it flips."""

import math

import pytest

from rfq.report import claims, estimates, evidence, view
from rfq.report.claims.verdict import (
    CORRECTED,
    FAILS,
    HOLDS,
    TOO_SMALL,
    UNTESTABLE,
    Judgement,
)
from rfq.theory import run as theory_run
from tests.report.made import (
    ADAMW,
    FREE,
    KL,
    MUON,
    RESIDUAL_KL,
    RIVALS,
    SOAP,
    STORY,
    eight,
    every_free,
    hot,
    rivals,
    story,
)

DEEP = {"layers": 24, "loss": 3.0}
STUCK = {"layers": 24, "loss": 5.29}
GROWS = {"kurtosis": lambda i: (0.0, 1.0 + i), "sqnr": lambda i: 0.0}
SHRINKS = {"kurtosis": lambda i: (0.0, 9.0 - i), "sqnr": lambda i: -float(i)}
ISOMETRIC = {"residual_free_adamw": {"isometry": 5.0}}
INGREDIENTS = {
    "residual_kl_shampoo_orthogonal": {"recipe": "orthogonal", "kurtosis": (0.0, 3.0)},
    "residual_free_muon_gaussian": {"recipe": "gpt2", "loss": 5.29},
    "residual_free_adamw": {"kurtosis": (0.0, 4.0)},
}
COSTS = {
    ADAMW: {"speed": 4.8, "memory": 90e9},
    RESIDUAL_KL: {"speed": 1.5, "memory": 90e9},
    KL: {"speed": 1.7},
    SOAP: {"speed": 0.9},
    MUON: {"speed": 4.6},
}

# Claim, verdict, what is changed in STORY.
CASES = [
    ("C1", HOLDS, {}),
    ("C1", CORRECTED, {ADAMW: {"kurtosis": (0.0, 2.0, 4.0)}}),
    ("C1", FAILS, {ADAMW: {"kurtosis": (0.0, 0.2, 0.5)}}),
    ("C1", FAILS, {ADAMW: {"kurtosis": (40.0, 30.0, 20.0)}}),
    ("C2", HOLDS, {}),
    ("C2", FAILS, {RESIDUAL_KL: {"kurtosis": (0.0, 0.3)}}),
    ("C2", FAILS, {RESIDUAL_KL: {"kurtosis": (0.0, 50.0)}}),
    ("C3", HOLDS, {}),
    ("C3", CORRECTED, {MUON: {"negentropy": 0.2}}),
    ("C3", FAILS, {SOAP: {"kurtosis": (0.0, -2.0, 0.0)}}),
    ("C4", HOLDS, INGREDIENTS),
    ("C4", CORRECTED, {**INGREDIENTS, "residual_free_adamw": {}}),
    ("C4", HOLDS, {**INGREDIENTS, "residual_free_adamw": {"diverged": True}}),
    ("C4", FAILS, {**INGREDIENTS, **every_free(kurtosis=(0.0, 3.0))}),
    # One corner with none of the three tells that none is necessary.
    ("C4", FAILS, {**INGREDIENTS, ADAMW: {"kurtosis": (0.0, 0.1)}}),
    (
        "C4",
        FAILS,
        {name: {"recipe": c.get("recipe")} for name, c in INGREDIENTS.items()},
    ),
    ("C5", HOLDS, {}),
    ("C5", CORRECTED, every_free(loss=3.5)),
    ("C5", FAILS, {MUON: {"loss": 2.8}}),
    ("C5", UNTESTABLE, {MUON: {"loss": 2.9}}),
    ("C6", HOLDS, {}),
    ("C6", CORRECTED, every_free(lost=1.0) | {
        arm: {"in_place": 4.0} for arm in (ADAMW, RESIDUAL_KL)
    }),
    ("C6", FAILS, every_free(lost=2.0)),
    ("C6", UNTESTABLE, {arm: {"lost": 0.001} for arm in STORY}),
    ("C6", FAILS, every_free(at={"W8A6": math.nan})),
    ("C6", CORRECTED, every_free(accuracy={"W8A8": -0.2}) | {
        ADAMW: {"accuracy": {"W8A8": -0.1}}
    }),
    ("C7", HOLDS, {}),
    ("C7", FAILS, {RESIDUAL_KL: {"at": {"W8A10": 0.2, "W8A12": 0.2}}}),
    ("C7", CORRECTED, {RESIDUAL_KL: {"at": {"W8A10": 0.2}}}),
    ("C7", CORRECTED, {RESIDUAL_KL: {"at": {"W8A10": math.nan}}}),
    ("C7", HOLDS, {KL: {"at": {"W8A10": math.nan}}}),
    ("C8", HOLDS, {}),
    ("C8", FAILS, {arm: {"w8": 0.3} for arm in STORY}),
    ("C8", CORRECTED, {MUON: {"w8": 0.3}}),
    ("C8", CORRECTED, {MUON: {"at": {"W8A8": math.nan}}}),
    ("C8", HOLDS, {MUON: {"w8": 0.3, "loss": 5.29}}),
    ("C9", HOLDS, {}),
    ("C9", FAILS, {MUON: {"sqnr": -30.0}}),
    ("C10", HOLDS, eight(**GROWS)),
    ("C10", CORRECTED, eight(**(GROWS | {
        "kurtosis": lambda i: (0.0, 1.0 + (i if i else 2.5)),
        "sqnr": lambda i: -float(i),
    }))),
    ("C10", FAILS, eight(**SHRINKS)),
    ("C11", HOLDS, {}),
    ("C11", CORRECTED, {KL: {"curve": (4.0, 3.2, 2.8), "speed": 2.0}}),
    ("C11", CORRECTED, {SOAP: {"curve": (4.0, 3.9, 3.8)}}),
    ("C11", FAILS, {KL: {"curve": (4.0, 3.9, 3.8)}}),
    ("C12", HOLDS, hot(loss=2.9)),
    ("C12", FAILS, hot(loss=3.1)),
    ("C12", UNTESTABLE, hot(loss=3.0)),
    ("C12", TOO_SMALL, hot(layers=4) | {MUON: {}}),
    ("C12", FAILS, hot(loss=5.29)),
    ("C12", HOLDS, hot(loss=3.1) | {MUON: {"layers": 12, "loss": 5.29}}),
    ("C13", HOLDS, {"residual_free_adamw": STUCK}),
    ("C13", FAILS, {"residual_free_adamw": DEEP}),
    ("C13", TOO_SMALL, {"residual_free_adamw": {}}),
    ("C13", CORRECTED, {
        "residual_free_adamw": DEEP | {"layers": 12},
        "residual_free_adamw_24": STUCK,
    }),
    ("C14", HOLDS, ISOMETRIC),
    ("C14", CORRECTED, {"residual_free_adamw": {"isometry": 5.0, "update_rms": 20.0}}),
    ("C14", FAILS, {"residual_free_adamw": {"isometry": 0.1}}),
    ("C14", CORRECTED, {"residual_free_adamw": {"isometry": 0.2, "update_rms": 0.01}}),
    ("C17", HOLDS, {}),
    ("C17", CORRECTED, {ADAMW: {"shape": (1.0, 0.6, 0.2, 0.3)}}),
    ("C17", FAILS, {ADAMW: {"shape": (0.2, 0.4, 0.6, 1.0)}}),
    ("C17", UNTESTABLE, {ADAMW: {"kurtosis": (0.0, 0.1)}}),
    ("C18", HOLDS, COSTS),
    ("C18", FAILS, {ADAMW: {"speed": 1.0}, MUON: {"speed": 2.0}, KL: {"speed": 3.0},
                    RESIDUAL_KL: {"speed": 4.0}, SOAP: {"speed": 5.0}}),
    ("C18", TOO_SMALL, {arm: {"device": "1 cpu device(s)"} for arm in STORY}),
    ("C19", HOLDS, {"residual_free_muon_deep": DEEP}),
    ("C19", CORRECTED, {
        "residual_free_muon_deep": STUCK,
        "residual_free_muon_deep_centered": DEEP | {"w_down": "centered"},
    }),
    ("C19", FAILS, {"residual_free_muon_deep": STUCK}),
    # What was not tried has not failed.
    ("C19", UNTESTABLE, {"residual_free_muon_deep": DEEP | {"w_down": "centered"}}),
    ("C19", UNTESTABLE, {"residual_free_muon_deep": STUCK | {"w_down": "centered"}}),
    ("C19", UNTESTABLE, {"residual_free_muon_deep": DEEP | {"vo_pair": "independent"}}),
    ("C19", CORRECTED, {
        "residual_free_muon_deep": STUCK,
        "residual_free_muon_deep_independent": DEEP | {"vo_pair": "independent"},
    }),
    ("C19", CORRECTED, {
        "residual_free_muon_deep": DEEP,
        "residual_free_muon_deep_gaussian": DEEP | {"recipe": "gpt2"},
    }),
    ("C19", HOLDS, {
        "residual_free_muon_deep": DEEP,
        "residual_free_muon_deep_gaussian": STUCK | {"recipe": "gpt2"},
    }),
    ("C19", TOO_SMALL, {}),
    ("C20", HOLDS, rivals()),
    ("C20", FAILS, {"residual_gated_adamw": {"lost": 0.1}}),
    ("C20", FAILS, {KL: {"at": {"W8A6": math.nan, "W4A4": math.nan}}} | {
        arm: {"loss": 3.1} for arm in (SOAP, MUON)
    }),
    ("C20", HOLDS, rivals("residual_gated_adamw", at={"W4A4": math.nan})),
    ("C20", UNTESTABLE, rivals("residual_gated_adamw", at={"W4A4": None})),
    ("C20", UNTESTABLE, rivals("residual_gated_adamw", loss=5.29)),
    ("C20", UNTESTABLE, rivals("residual_gated_adamw", lost=0.1, width=256)),
    ("C20", UNTESTABLE, {}),
]  # fmt: skip


@pytest.fixture
def judge(tmp_path):
    """Judges claims on STORY with changes."""

    def judged(*names, theory=(), **changes) -> dict[str, Judgement]:
        shown = view.of(
            story(tmp_path / str(len(list(tmp_path.iterdir()))), theory, **changes)
        )
        every = [evidence.every(shown)]
        return {name: claims.decide(name, every) for name in names}

    return judged


@pytest.mark.parametrize(
    ("claim", "verdict", "changes"),
    CASES,
    ids=[f"{i}-{claim}-{verdict}" for i, (claim, verdict, _) in enumerate(CASES)],
)
def test_verdicts_follow_the_rows(judge, claim, verdict, changes):
    found = judge(claim, **changes)[claim]
    assert found.verdict == verdict, found
    assert found.why
    assert found.numbers


def _theory(verdict, **others):
    return [
        {
            "claim": name,
            "statement": "what is claimed",
            "measured": 0.5,
            "standard_error": 0.01,
            "verdict": others.get(name, verdict),
            "why": "A factor.",
        }
        for name in (*theory_run.PAPER, *theory_run.CORRECTIONS)
    ]


@pytest.mark.parametrize("claim", ["C15", "C16"])
@pytest.mark.parametrize("verdict", [HOLDS, CORRECTED, FAILS])
def test_verdicts_on_lemmas_are_those_of_the_theory(judge, claim, verdict):
    corrections = dict.fromkeys(theory_run.CORRECTIONS, FAILS)
    rows = _theory(verdict, **corrections)
    assert judge(claim, theory=rows)[claim].verdict == verdict
    assert "rfq theory --out DIR" in judge(claim)[claim].missing[0]


def test_every_claim_has_rows_for_it_and_rows_against_it():
    verdicts: dict[str, set[str]] = {}
    for claim, verdict, _ in CASES:
        verdicts.setdefault(claim, set()).add(verdict)
    assert {*verdicts, "C15", "C16"} == set(claims.CLAIMS)
    assert all(each >= {HOLDS, FAILS} for each in verdicts.values())


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        ((ADAMW,), {"C1": "residual AdamW", "C18": "residual AdamW"}),
        ((ADAMW, RESIDUAL_KL), dict.fromkeys(("C5", "C6", "C9"), "a residual arm")),
        (FREE, {"C3": "residual-free SOAP", "C20": "a residual-free arm"}),
        ((SOAP,), {"C11": "residual-free SOAP"}),
        ((), {"C4": "residual, orthogonal, spectral", "C10": "3 more arms",
              "C20": "residual with gated attention"}),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(judge, absent, named):
    found = judge(*named, **dict.fromkeys(absent))
    for claim, what in named.items():
        assert found[claim].verdict in (UNTESTABLE, TOO_SMALL)
        assert any(what in each for each in found[claim].missing), found[claim]


def test_runs_too_small_for_a_claim_decide_nothing_and_say_where_they_point(judge):
    tiny = {arm: {"num_params": 328_512.0} for arm in STORY}
    for claim in ("C2", "C5", "C7", "C17"):
        large, small = judge(claim)[claim], judge(claim, **tiny)[claim]
        assert large.verdict == HOLDS
        assert small.verdict == TOO_SMALL
        assert "It takes 50 M parameters or more. Here: holds." in small.why
        assert small.numbers == large.numbers


def test_a_norm_or_another_cure_is_not_the_paper_s_arm(judge):
    light = {"kurtosis": (0.0, 0.1), "loss": 1.0}
    rounded = {"residual_rounded_adamw": {"qat": {"spec": "W8A4"}}}
    for name, cure in {**RIVALS, **rounded}.items():
        assert judge("C1", **{name: cure | light})["C1"].verdict == HOLDS


def test_every_kurtosis_stands_beside_a_loss(judge):
    found = judge(*claims.CLAIMS, **INGREDIENTS).values()
    numbers = [n for judgement in found for n in judgement.numbers]
    kurtoses = [n for n in numbers if "excess kurtosis" in n.what]
    assert len(kurtoses) > 10
    assert all(n.unit == "kurtosis" and n.loss is not None for n in kurtoses)


def test_a_gap_has_the_interval_of_a_paired_bootstrap(judge):
    gap = judge("C5")["C5"].numbers[2]
    # Every sequence is .1 harder in one arm: pairing leaves no spread, where unpaired
    # sequences would have 1 / sqrt(64) = .125.
    assert gap.value == pytest.approx(0.1)
    assert gap.hi - gap.lo < 1e-9


@pytest.mark.parametrize(
    ("setting", "lost"),
    [
        ({}, 0.2),
        ({"calibrator": "mse"}, None),
        ({"taps": "all"}, None),
        ({"methods": "rotate"}, None),
    ],
    ids=["the same", "calibrator", "taps", "methods"],
)
def test_accuracies_of_another_setting_are_no_evidence(tmp_path, setting, lost):
    found = story(tmp_path, **{KL: {"accuracy": {"W8A8": -0.2}, **setting}})
    seen = evidence.of(view.of(found))
    assert seen.lost_accuracy(seen.facts[KL], "W8A8", "branch").value == pytest.approx(
        lost
    )


def test_rank_correlation_shares_the_ranks_of_ties():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    rho = estimates.rank_correlation([1.0, 7.0, 7.0, 9.0], [0.1, 0.2, 0.3, 0.4])
    assert rho == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert estimates.rank_correlation([1.0, 1.0], [1.0, 2.0]) is None
