"""Hand-made documents of the eight tasks, in Hugging Face's columns.

Twenty or more a task. Among them: labels 1 to 4 and A to E, three to five choices,
bracketed and titled WikiHow text, double spaces, texts of several scripts, an empty
context, a passage longer than any sequence, braces and percent signs that a template
must leave alone, a question of digits, equal choices, texts that end in spaces.
"""

# Wherever a text stands, these must come through unchanged.
AWKWARD = (
    "Plain words, then a stop.",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich",
    "日本語の文章です。次は何ですか",
    "emoji \U0001f9ea and a combining e\u0301",
    "two  spaces   and three",
    " leading space",
    "trailing space ",
    "line\nbreak and\ttab",
    "{{ braces }} and {% tags %} and {# notes #}",
    "100 % of 50 costs $5 & <more>",
    "quotes 'single' and \"double\" and \\backslash\\",
    "12345",
    "ends with a newline\n",
    "non\u00a0breaking and zero\u200bwidth",
    "Привет, мир: как дела",
    "العربية من اليمين",
    "A_B_C",
    "x",
    "ALL CAPS SHOUTING ABOUT DNA AND RNA",
    "[header] What to do [step] Begin [title] End [substeps] Now.",
)

_PAGES = "The river rose in spring, and the mill stood still for weeks. " * 60


def _lettered(texts, numeric: bool, gold: int) -> dict:
    labels = [str(i + 1) if numeric else "ABCDE"[i] for i in range(len(texts))]
    return {
        "choices": {"text": list(texts), "label": labels},
        "answerKey": labels[gold],
    }


def _arc() -> list[dict]:
    return [
        {
            "id": f"arc-{i}",
            "question": text,
            **_lettered(
                [AWKWARD[(i + k) % 20] for k in range(1, 4 + i % 3)], i % 4 == 1, i % 3
            ),
        }
        for i, text in enumerate(AWKWARD)
    ] + [
        {"id": "arc-same", "question": "Which?", **_lettered(["ice"] * 4, False, 3)},
        {"id": "arc-empty", "question": "", **_lettered(["a", "b", "c"], True, 2)},
    ]


def _boolq() -> list[dict]:
    found = [
        {"question": AWKWARD[(i + 7) % 20], "passage": text, "idx": i, "label": i % 2}
        for i, text in enumerate(AWKWARD)
    ]
    long = {"question": "did the mill stand still", "passage": _PAGES, "idx": 20}
    return [*found, {**long, "label": 1}, {**found[0], "passage": "", "idx": 21}]


def _hellaswag() -> list[dict]:
    found = [
        {
            "ind": i,
            "activity_label": "Personal Care [and] Style" if i % 5 == 0 else "Roofing",
            "ctx_a": text,
            "ctx_b": AWKWARD[(i + 5) % 20] if i % 3 else "",
            "endings": [AWKWARD[(i + k) % 20] for k in range(4)],
            "label": str(i % 4),
        }
        for i, text in enumerate(AWKWARD)
    ]
    wikihow = {
        "ind": 20,
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to clean [title] Open the window. [step] Take a cloth.",
        "ctx_b": "he USES Water [substeps] of 20 °C",
        "endings": [
            "[substeps] Wipe [it] dry. [title] Then rest.",
            "  [title] [step] [header]",
            "pours [unclosed water out",
            "is [nested [twice] over] again.",
        ],
        "label": "0",
    }
    return [*found, wikihow]


def _openbookqa() -> list[dict]:
    found = [
        {
            "id": f"7-{i}",
            "question_stem": text,
            **_lettered([AWKWARD[(i + k) % 20] for k in range(2, 6)], False, i % 4),
        }
        for i, text in enumerate(AWKWARD)
    ]
    padded = {**found[0], "id": "7-20", "answerKey": " B"}
    return [*found, padded, {**found[1], "id": "7-21", "question_stem": ""}]


def _piqa() -> list[dict]:
    return [
        {"goal": text, "sol1": AWKWARD[(i + 3) % 20], "sol2": AWKWARD[(i + 9) % 20]}
        | {"label": i % 2}
        for i, text in enumerate(AWKWARD)
    ]


def _social_iqa() -> list[dict]:
    return [
        {
            "context": text,
            "question": AWKWARD[(i + 11) % 20],
            **{f"answer{c}": AWKWARD[(i + k) % 20] for k, c in enumerate("ABC", 1)},
            "label": str(1 + i % 3),
        }
        for i, text in enumerate(AWKWARD)
    ]


def _winogrande() -> list[dict]:
    found = [
        {
            "sentence": f"{text.replace('_', '-')} because _ was late; {AWKWARD[i]}",
            "option1": "Ángela",
            "option2": "the other one",
            "answer": str(1 + i % 2),
        }
        for i, text in enumerate(AWKWARD)
    ]
    first = {"sentence": "_ was late.", "option1": "", "option2": "Bo", "answer": "2"}
    spaced = {**first, "sentence": "It was  _  , again _ .", "option1": "x "}
    return [*found, first, spaced]


DOCUMENTS = {
    "arc_c": _arc(),
    "arc_e": _arc()[::-1],
    "boolq": _boolq(),
    "hellaswag": _hellaswag(),
    "openbookqa": _openbookqa(),
    "piqa": _piqa(),
    "social_iqa": _social_iqa(),
    "winogrande": _winogrande(),
}
