"""Tables: cells and averages against arithmetic by hand."""

from __future__ import annotations

import pytest

from gram_jax.evaluation import Row
from gram_jax.reporting import Table, pivot, to_markdown, to_text


def rows(method, **values):
    return [
        Row(method, "few_shot", dataset, "accuracy", value, seed=seed)
        for dataset, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]


def test_cells_hold_mean_and_half_interval():
    table = pivot(rows("coop", x=[0.5, 0.6, 0.7], y=[0.8, 0.7, 0.6]) + rows("clip", x=[0.4], y=[0.6]))
    assert table.header == ("method", "x", "y", "mean")
    # std of (50, 60, 70) is 10; t_{0.975, 2} = 4.3027, so half the interval is 4.3027 * 10 / sqrt(3) = 24.84.
    # The means over x and y of each seed are 65, 65, 65: their interval is zero, since the draws cancel.
    assert table.rows == (
        ("coop", "60.0 ±24.8", "70.0 ±24.8", "65.0 ±0.0"),
        ("clip", "40.0", "60.0", "50.0"),
    )


def test_missing_cells_have_no_mean():
    table = pivot(rows("coop", x=[0.5], y=[0.6]) + rows("clip", y=[0.25]))
    assert table.rows == (("coop", "50.0", "60.0", "55.0"), ("clip", "-", "25.0", "-"))
    unequal = pivot(rows("coop", x=[0.5, 0.5], y=[0.6]))
    assert unequal.rows[0][-1] == "-"


def test_other_fields_and_units():
    data = [Row("a", "p", "x", "loss", 0.1234, step=s) for s in (1, 2)] + rows("a", x=[0.5])
    table = pivot(data, index="dataset", columns="step", metric="loss", scale=1, digits=3, mean_column=False)
    assert table == Table(("dataset", "1", "2"), (("x", "0.123", "0.123"),))


def test_text_is_aligned():
    text = to_text(Table(("method", "a", "long name"), (("coop", "1.0 ±0.1", "-"), ("x", "2.0", "10.0"))))
    assert text.split("\n") == [
        "method           a    long name",
        "coop      1.0 ±0.1            -",
        "x              2.0         10.0",
    ]


def test_markdown_escapes_its_own_signs():
    assert to_markdown(Table(("m", "v"), (("a|b", "1"),))).split("\n")[-1] == "| a\\|b |   1 |"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rows("a", x=[0.5]) * 2, r"'a', 'x'.* two rows for \{'seed': 0\}"),
        ([Row("a", "p", "x", "accuracy", 0.5, split=split) for split in ("base", "new")], "split"),
        ([], "metric 'accuracy'"),
    ],
)
def test_mixed_cells_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        pivot(data)
