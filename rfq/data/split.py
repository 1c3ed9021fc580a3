"""The split that a document belongs to, which a hash of the document alone decides."""

import hashlib

from rfq.data.sources import Document

SPLITS = ("train", "calibration", "heldout")
CALIBRATION_FRACTION = 0.03
HELDOUT_FRACTION = 0.05
# Tokens that `rfq quantize` calibrates on by default; losses on fewer are rough.
ENOUGH_TOKENS = 1 << 15


def split_of(
    document: Document, *, calibration_fraction: float, heldout_fraction: float
) -> str:
    """Assign a document by the sha256 of its id and text, read as u in [0, 1).

    u < heldout_fraction is held out, the next calibration_fraction calibrates, the
    rest trains. Neither the order of the documents nor the machine matters, and a
    larger training share never moves a document from training to held-out.
    """
    digest = hashlib.sha256(f"{document.id}\0{document.text}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2.0**64
    if u < heldout_fraction:
        return "heldout"
    if u < heldout_fraction + calibration_fraction:
        return "calibration"
    return "train"
