import pytest

from vlm_distill.reporting.charts.svg import figure, nice_ticks, number, text, tick_labels, value_axis


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (-0.2, 0.9, [0, 0.5]),
        (0.66, 0.76, [0.66, 0.68, 0.7, 0.72, 0.74, 0.76]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short() -> None:
    shown = {
        0: "0",
        5e-5: "5e-5",
        0.0005: "0.0005",
        0.75: "0.75",
        12.345: "12.3",
        1234: "1,234",
        25_000: "25k",
    }
    assert {value: number(value) for value in shown} == shown


def test_ticks_that_lie_close_have_the_digits_that_tell_them_apart() -> None:
    assert tick_labels([1.962, 1.963, 1.964]) == ["1.962", "1.963", "1.964"]
    assert tick_labels([0, 0.5, 1.0]) == ["0", "0.5", "1"]
    assert tick_labels([1000.2, 1000.4]) == ["1000.2", "1000.4"]
    assert tick_labels([]) == []


def test_an_axis_holds_its_values_and_starts_at_zero_where_that_is_near() -> None:
    axis = value_axis([2.0, 10.0], start=200, end=0)
    assert axis.at(0) == 200
    assert 0 <= axis.at(10.0) < axis.at(2.0)
    assert value_axis([9.0, 10.0], start=0, end=1).low > 8


def test_equal_values_lie_in_the_middle() -> None:
    for value in (0.0, 3.0, -3.0):
        assert value_axis([value, value], start=0, end=100).at(value) == pytest.approx(50, abs=5)


def test_a_logarithmic_axis_spaces_factors_equally() -> None:
    axis = value_axis([0.01, 10.0], start=0, end=300, may_be_log=True)
    assert axis.at(0.1) - axis.at(0.01) == pytest.approx(axis.at(10.0) - axis.at(1.0))
    assert axis.ticks == pytest.approx([0.01, 0.1, 1, 10])
    assert not value_axis([0.0, 10.0], start=0, end=1, may_be_log=True).is_log


def test_texts_and_labels_are_escaped() -> None:
    drawing = figure([text(1, 2, '<b>&"')], height=10, label='a" onload="x')
    assert "&lt;b&gt;&amp;&#34;" in drawing
    assert 'aria-label="a&#34; onload=&#34;x"' in drawing
