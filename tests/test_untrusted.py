import time

import pytest

from studio.untrusted import shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a red cat", "a red cat"),
        ("Müller, 猫, 🐈", "Müller, 猫, 🐈"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;new title\x07name", "name"),
        ("\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPdevice\x1b\\string", "string"),
        ("\x1bcreset", "reset"),
        ("a\x1b", "a"),
        ("a\r\nb\tc\v  d", "a b c d"),
        ("a\0b\x7fc\x08", "abc"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("half\ud800", "half"),
        ("<b>[red]", "<b>[red]"),
        ("", ""),
    ],
    ids=ascii,
)
def test_only_what_can_be_read_is_left(text: str, safe: str):
    assert shown(text) == safe


def test_long_text_is_cut_and_says_so():
    assert shown("x" * 200) == "x" * 200
    assert shown("x" * 201) == "x" * 199 + "…"
    assert shown("abcdef", limit=4) == "abc…"
    assert shown("\0" * 5000 + "x") == "…"


def test_ten_megabytes_cost_nothing():
    began = time.monotonic()
    assert len(shown("\x1b]" * 5_000_000)) <= 200
    assert time.monotonic() - began < 0.1
