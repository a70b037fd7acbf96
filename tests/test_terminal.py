"""Whatever a name holds, a terminal shows it and does nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcd.terminal import printable, tell


@pytest.mark.parametrize(
    "text, shown",
    [
        ("patch 1.tif", "patch 1.tif"),
        ("Gewebe-ä-組織.tif", "Gewebe-ä-組織.tif"),
        ("a\nb", "a\\nb"),
        ("\x1b[2Ja", "\\x1b[2Ja"),
        ("a\u202eb", "a\\u202eb"),  # text that runs from right to left
        ("o\udcff", "o\\xff"),  # a byte that is no UTF-8
        ("\ud800", "\\ud800"),
    ],
)
def test_signs_that_a_terminal_would_obey_are_shown(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_any_text_is_one_printable_line(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")  # which lone surrogates could not be
    assert shown == text or not text.isprintable()


def test_an_error_is_told_on_one_line(capsys):
    tell(ValueError("a\nb  \x1b[31mc"))
    assert capsys.readouterr().err == "hcd: a b \\x1b[31mc\n"
