import json

import pytest

from studio.trigger_words import trigger_words


def tags(**folders: object) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps(folders)}


def test_the_surest_word_comes_first():
    metadata = {"modelspec.trigger_phrase": "sks dog", "studio.trigger": "sks"} | tags(a={"dog": 3})
    assert trigger_words(metadata, ["<new1>"]) == ["sks", "sks dog", "<new1>", "dog"]


def test_tags_count_over_all_folders():
    assert trigger_words(tags(a={"dog": 3, "sks": 4}, b={"dog": 3, "hat": 1})) == ["dog", "sks", "hat"]


def test_a_word_is_named_once_and_only_some_are():
    metadata = {"studio.trigger": "t1"} | tags(a={f"t{n}": 99 - n for n in range(50)})
    assert trigger_words(metadata) == ["t1", "t0", "t2", "t3", "t4"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '{"a": 1}',
        '{"a": {"x": "9"}}',
        '{"a": {"x": true}}',
        '{"a": {"x": NaN}}',
        "[" * 10**5,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_is_no_table_of_tags_says_nothing(text: str):
    assert trigger_words({"ss_tag_frequency": text}) == []


def test_words_of_strangers_are_safe_to_show():
    assert trigger_words({"studio.trigger": "\x1b[31msks\x07\n dog"}) == ["sks dog"]
    assert trigger_words({"studio.trigger": "x" * 10**6}) == []
