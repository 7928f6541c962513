import pytest
from fixtures_models import tiny_tokenizer

from studio.concepts import Concept
from studio.errors import UsageError
from studio.spans import spell


def concept(name: str, trigger: str, class_word: str, tmp_path) -> Concept:
    return Concept(name, trigger, class_word, "b", "sdxl", "lora", tmp_path)


@pytest.fixture
def pair(tmp_path) -> list[Concept]:
    return [concept("milo", "sks", "cat", tmp_path), concept("rex", "ohwx", "red dog", tmp_path)]


def test_places_hold_the_phrases(pair):
    spelled = spell("a <milo>, an <rex> and <milo> again", pair)
    assert spelled.text == "a sks cat, an ohwx red dog and sks cat again"
    said = {name: [spelled.text[a:b] for a, b in places] for name, places in spelled.places.items()}
    assert said == {"milo": ["sks cat"] * 2, "rex": ["ohwx red dog"]}


def test_tokens_are_those_of_the_phrase_wherever_it_stands(pair):
    tokenizer = tiny_tokenizer()
    spelled = spell("a <milo> and an <rex>", pair)
    ids = tokenizer(spelled.text).input_ids
    for name, phrase in (("milo", "sks cat"), ("rex", "ohwx red dog")):
        own = tokenizer(phrase).input_ids[1:-1]
        assert [ids[n] for n in spelled.tokens(tokenizer, name)] == own


def test_a_word_of_several_rows_takes_a_token_for_each(pair, tmp_path):
    """The base reads it spelled out, row by row, which moves all that follows."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["toy0", "toy0_1", "toy0_2"])
    toy = concept("toy", "toy0", "cat", tmp_path)
    read = tokenizer("a toy0 toy0_1 toy0_2 cat, an ohwx red dog and toy0 toy0_1 toy0_2 cat").input_ids
    spelled = spell("a <toy>, an <rex> and <toy>", [toy, pair[1]])
    own = {phrase: tokenizer(phrase).input_ids[1:-1] for phrase in ("toy0 toy0_1 toy0_2 cat", "ohwx red dog")}
    assert [read[n] for n in spelled.tokens(tokenizer, "toy")] == own["toy0 toy0_1 toy0_2 cat"] * 2
    assert [read[n] for n in spelled.tokens(tokenizer, "rex")] == own["ohwx red dog"]
    with pytest.raises(UsageError, match="<rex> lie beyond"):
        spell("<toy> " * 6 + "<rex>", [toy, pair[1]]).tokens(tokenizer, "rex")


def test_words_beyond_the_limit_are_an_error(pair):
    tokenizer = tiny_tokenizer()
    spelled = spell("a red cat " * 20 + "<milo>", pair)
    with pytest.raises(UsageError, match="<milo> lie beyond"):
        spelled.tokens(tokenizer, "milo")


def test_other_words_at_the_places_of_some_concepts(pair):
    spelled = spell("a <milo>, an <rex> and <milo> again", pair)
    other = spelled.reworded({"milo": "cat"})
    assert other.text == "a cat, an ohwx red dog and cat again"
    said = {name: [other.text[a:b] for a, b in places] for name, places in other.places.items()}
    assert said == {"milo": ["cat"] * 2, "rex": ["ohwx red dog"]}
    assert spelled.reworded({}) == spelled


def test_words_are_added_unless_they_stand_there_by_themselves(pair):
    for prompt, text in (
        ("a <milo> in pink style", "a sks cat in pink style, ink style"),
        ("ink styles", "ink styles, ink style"),
        ("a <milo>, ink style", "a sks cat, ink style"),
        ("", "ink style"),
    ):
        assert spell(prompt, pair).with_words(["ink style"]).text == text
