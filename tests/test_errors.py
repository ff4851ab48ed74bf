"""Errors show what files say, and do not obey it."""

from __future__ import annotations

import pytest

from caffe2torch.errors import Caffe2TorchError, SourceLocation, describe, visible

HOSTILE = "\x1b[31m\x07\x9b\u202e\u2066\x7f\r"


def test_an_error_shows_control_characters_in_every_part() -> None:
    error = Caffe2TorchError(
        f"message {HOSTILE}\n  second line",
        where=SourceLocation(HOSTILE, 1, 2),
        found=HOSTILE,
        expected=HOSTILE,
        hint=HOSTILE,
    )
    assert all(line.isprintable() for line in str(error).split("\n"))
    assert str(error).count(r"\x1b[31m\x07\x9b\u202e\u2066\x7f\r") == 5
    assert len(str(error).split("\n")) == 5


def test_text_that_prints_is_left_as_it_is() -> None:
    assert visible("größe_1×2/层") == "größe_1×2/层"
    assert visible("a\nb") == r"a\nb"
    assert visible("a\nb\x1b", lines=True) == "a\nb\\x1b"


class Silent(BaseException):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no weights"), "ValueError: no weights"),
        (KeyError(), "KeyError"),
        (Silent(), "Silent: its message raises KeyboardInterrupt"),
    ],
)
def test_whatever_was_raised_is_described(error: BaseException, words: str) -> None:
    assert describe(error) == words
