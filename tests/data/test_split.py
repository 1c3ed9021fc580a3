import collections
import hashlib

from rfq.data import sources, split
from rfq.data.sources import Document

DEFAULT = {
    "calibration_fraction": split.CALIBRATION_FRACTION,
    "heldout_fraction": split.HELDOUT_FRACTION,
}


def test_split_is_the_hash_of_id_and_text():
    document = Document("some id", "some text")
    digest = hashlib.sha256(b"some id\0some text").hexdigest()
    u = int(digest[:16], 16) / 2**64
    just_above, just_below = u + 1e-9, u - 1e-9
    assert (
        split.split_of(document, calibration_fraction=1e-3, heldout_fraction=just_above)
        == "heldout"
    )
    assert (
        split.split_of(document, calibration_fraction=1e-3, heldout_fraction=just_below)
        == "calibration"
    )
    assert (
        split.split_of(document, calibration_fraction=1e-12, heldout_fraction=1e-12)
        == "train"
    )


def test_shares_are_the_fractions():
    documents = [Document(str(i), "text") for i in range(20_000)]
    count = collections.Counter(split.split_of(d, **DEFAULT) for d in documents)
    # Three standard deviations of a binomial share at 20,000 draws: 0.005.
    assert abs(count["heldout"] / 20_000 - 0.05) < 0.005
    assert abs(count["calibration"] / 20_000 - 0.03) < 0.005


def test_the_embedded_split_has_not_moved():
    """The embedded tokenizer and every recorded result rest on this split."""
    heldout = [
        d.id
        for d in sources.documents("embedded")
        if split.split_of(d, **DEFAULT) == "heldout"
    ]
    assert len(heldout) == 7
    assert hashlib.sha256("\n".join(heldout).encode()).hexdigest() == (
        "1af0a1038213acd14d1dedd6b3a6c29023d7585e5152ddd26af468c8551c37f8"
    )
