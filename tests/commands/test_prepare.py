"""The way of one's own text: a tokenizer, prepared data, and what is said of them."""

from rfq import cli
from rfq.data import manifest, split
from rfq.experiment import QuantizeConfig
from tests.data import corpora


def test_own_text_gets_a_tokenizer_and_is_prepared_with_it(tmp_path, capsys):
    text, model, out = tmp_path / "own.txt", tmp_path / "own.model", tmp_path / "data"
    text.write_text("\n\n".join(corpora.texts(300)))
    command = ("prepare", "tokenizer", str(text), "--out", str(model))
    assert cli.main([*command, "--vocab-size", "99999"]) == 2
    assert "at most" in capsys.readouterr().err
    assert cli.main([*command, "--vocab-size", "300"]) == 0
    assert "--model.vocab-size 300" in capsys.readouterr().out
    command = ("prepare", str(text), "--out", str(out), "--tokenizer", str(model))
    assert cli.main([*command, "--window-len", "32"]) == 0
    said = capsys.readouterr().out
    made = manifest.load(out)
    assert made.recipe.vocab_size == 300 and made.recipe.documents == "blank-line"
    for name, part in made.splits.items():
        assert f"{part.num_tokens:,} tokens" in said, name
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert [note.split()[1] for note in notes] == ["calibration", "heldout"]
    assert "give --calibration-fraction 0.25" in notes[0]


def test_enough_tokens_are_what_quantization_asks_for():
    assert QuantizeConfig.calibration_tokens == split.ENOUGH_TOKENS
