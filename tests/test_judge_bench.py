"""Agreement of two judges, counted by hand."""

from dataclasses import replace

from studio.judge import Reading
from studio.pipelines.judge_bench import agreement

SEEN = Reading("cat", "red", "white", "dotted", "none", "red", "paper", "flat", (0.5, 0.5))


def test_agreement_is_the_share_of_equal_readings():
    others = [SEEN, replace(SEEN, kind="dog"), replace(SEEN, colour="blue"), replace(SEEN, kind="fish")]
    shares = agreement([SEEN] * 4, others)
    assert (shares["kind"].value, shares["colour"].value, shares["style"].value) == (0.5, 0.75, 1.0)


def test_a_second_colour_counts_only_where_both_see_a_pattern():
    others = [replace(SEEN, second="blue"), replace(SEEN, second="blue", pattern="plain"), SEEN]
    assert agreement([SEEN] * 3, others)["second"] == agreement([SEEN] * 2, [others[0], SEEN])["second"]
    assert agreement([SEEN] * 3, others)["second"].value == 0.5
