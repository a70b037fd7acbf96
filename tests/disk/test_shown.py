"""Progress bars keep out of a notebook's way, and no loss is minus nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcd.disk import shown
from hcd.disk.shown import in_notebook, loss_text, progress_bar


def count_to(total, fail_at=None):
    with progress_bar(total, "counting") as bar:
        for number in range(total):
            if number == fail_at:
                raise KeyError
            bar.update()


def test_in_a_terminal_a_bar_is_told_on_standard_error_and_stays(capsys):
    assert not in_notebook()
    count_to(3)
    out, err = capsys.readouterr()
    assert not out and "counting: 100%" in err and err.endswith("\n")


@pytest.mark.parametrize("fail_at", [None, 2])
def test_in_a_notebook_it_is_told_on_standard_output_and_leaves_nothing(
    capsys, monkeypatch, fail_at
):
    monkeypatch.setattr(shown, "in_notebook", lambda: True)
    if fail_at:
        with pytest.raises(KeyError):
            count_to(3, fail_at)
    else:
        count_to(3)
    out, err = capsys.readouterr()
    assert not err and "counting: " in out
    assert out.endswith("\r") and not out.split("\r")[-2].strip()  # what the screen shows last


def test_a_bar_that_is_not_to_be_shown_writes_nothing(capsys):
    with progress_bar(2, "hidden", False) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "loss, digits, text",
    [
        (-0.0, 2, "0.00"),
        (-0.004, 2, "0.00"),
        (-0.006, 2, "-0.01"),
        (-1.5, 2, "-1.50"),
        (0.0049, 2, "0.00"),
        (-1e-9, 6, "0.000000"),
        (math.nan, 2, "nan"),
        (math.inf, 1, "inf"),
    ],
)
def test_no_loss_is_minus_nothing(loss, digits, text):
    assert loss_text(loss, digits) == text


@given(st.floats(0, 1e9), st.integers(0, 6))
def test_other_losses_are_written_as_python_writes_them(loss, digits):
    assert loss_text(loss, digits) == f"{loss:.{digits}f}"
