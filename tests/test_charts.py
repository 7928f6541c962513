import pytest

from studio.ui.charts import HEIGHT, MOST_POINTS, WIDTH, chart_of, thinned


def points(text):
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_long_training_is_a_few_hundred_points_and_keeps_its_mean():
    losses = [(n, float(n % 7)) for n in range(1, 20_001)]
    thin = thinned(losses)
    assert len(thin) <= MOST_POINTS
    assert thin[-1][0] == 20_000
    assert sum(value for _, value in thin) / len(thin) == pytest.approx(3.0, abs=0.02)


def test_lines_run_from_edge_to_edge_and_stay_inside_whatever_spikes_there_are():
    chart = chart_of([(n, 1000.0 if n == 50 else 1.0) for n in range(1, 101)], [(40, 0.5)])
    found = points(chart.raw)
    assert (found[0][0], found[-1][0]) == (0.0, WIDTH)
    assert all(0 <= y <= HEIGHT for _, y in [*found, *points(chart.smooth)])
    assert found[0][1] < HEIGHT / 4  # the spike does not press the rest to the ground


def test_smoothing_is_the_running_mean_in_closed_form():
    chart = chart_of([(1, 0.0), (2, 1.0), (3, 1.0)], smoothing=0.5)
    assert chart.words == "0.000 at step 1, 0.750 at step 3, smoothed"
    assert points(chart_of([(1, 2.0), (2, 1.0)], smoothing=0.0).raw) == points(
        chart_of([(1, 2.0), (2, 1.0)], smoothing=0.0).smooth
    )


def test_one_step_is_a_chart_too():
    assert chart_of([(1, 0.0)]).last == 1
