"""Runs the words of a command in this process."""

from rfq import cli
from tests import tiny


def said(capsys, *argv: str) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert cli.main(argv) == 0
    return capsys.readouterr().out


def refused(capsys, *argv: str) -> str:
    """The sentence on stderr: one line, exit status 2, nothing compiled."""
    capsys.readouterr()
    with tiny.compilations() as compiled:
        status = cli.main(argv)
    stderr = capsys.readouterr().err
    assert status == 2
    assert compiled == []
    assert stderr.startswith("rfq: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    return stderr
