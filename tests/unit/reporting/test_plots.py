"""The plots of single protocols against numbers by hand, and the default reference."""

import itertools

import numpy as np
import pytest
from scipy import stats

from gram_jax.evaluation import Row
from gram_jax.reporting import default_reference, plots, protocol_plots


def test_plots_of_transfer_and_of_long_tails(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    rows = [
        Row(method, "cross_dataset", "glyphs:chess", "accuracy", 0.1 * seed + gain, domain, 4, seed, "all", 5)
        for method, gain in (("coop", 0.1), ("coop+gram", 0.2))
        for domain, seed in itertools.product((None, "glyphs:digits", "glyphs:arrows"), (1, 2, 3))
    ]
    assert protocol_plots.transfer(rows, tmp_path / "a.png")
    (panel,) = figures[0].axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["digits", "arrows", "mean"]
    line, _, (bars,) = panel.containers[1].lines
    np.testing.assert_allclose(line.get_ydata(), [40.0] * 3)  # 30, 40 and 50
    half = stats.t.ppf(0.975, 2) * 10 / 3**0.5
    np.testing.assert_allclose(bars.get_segments()[2][:, 1], [40 - half, 40 + half])

    values = {"base": 0.5, "new": 0.3, "head": 0.7, "tail": 0.2}
    rows = [
        Row("coop", f"imbalanced:{tau}", "toy", "accuracy", value * tau, None, 16, 1, split, 5)
        for tau in (1, 0.25)
        for split, value in values.items()
    ]
    assert protocol_plots.long_tails(rows, tmp_path / "b.png")
    shown = [axis.containers[0].lines[0].get_ydata() for axis in figures[1].axes]
    np.testing.assert_allclose(shown[0], [37.5, 37.5 / 4])  # H of 50 and 30
    np.testing.assert_allclose([shown[1], shown[2]], [[50, 12.5], [30, 7.5]])
    np.testing.assert_allclose(shown[3], [17.5, 5.0])  # head and tail at tau 0.25
    assert not protocol_plots.long_tails(rows[:4], tmp_path / "c.png")
    assert not protocol_plots.transfer(rows, tmp_path / "d.png")


def test_base_and_new_accuracy_along_tuning(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    at = {"base": {0: 0.5, 30: 0.8, 300: 0.9}, "new": {0: 0.5, 30: 0.6, 300: 0.4}}
    rows = [
        Row(method, "base_to_new", "toy", "accuracy", value + shift, None, 4, seed, split, step)
        for method, gain in (("coop", 0.0), ("coop+gram", 0.02))
        for split, values in at.items()
        for step, value in values.items()
        for seed, shift in ((1, gain), (2, gain + 0.02))
    ]
    fixed = ("zero_shot", "zero_shot:own")
    rows += [Row(name, "base_to_new", "toy", "accuracy", 0.5, split=split) for name in fixed for split in at]
    assert plots.base_new_along_tuning(rows, tmp_path / "a.png")
    base, new, harmonic = figures[0].axes
    lines = {container.get_label(): container.lines[0] for container in new.containers}
    assert len(lines) == 3
    np.testing.assert_allclose(lines["CoOp"].get_ydata(), [51, 61, 41])
    np.testing.assert_allclose(lines["zero-shot, own template"].get_ydata(), [50, 50, 50])
    assert sorted(tick.get_text() for tick in base.get_xticklabels()) == ["0", "30", "300"]
    seeds = [2 * b * n / (b + n) for b, n in ((90, 40), (92, 42))]
    own = next(each for each in harmonic.containers if each.get_label() == "CoOp")
    assert own.lines[0].get_ydata()[-1] == pytest.approx(np.mean(seeds))
    first = [row for row in rows if row.step in (None, 0)]
    assert not plots.base_new_along_tuning(first, tmp_path / "b.png")


def test_zero_shot_is_the_default_reference_without_gram():
    methods = ["zero_shot", "coop", "coop+kgcoop", "vpt"]
    assert default_reference(methods) == "zero_shot"
    assert default_reference([*methods, "coop+gram"]) is None
    assert default_reference(methods[1:]) is None


@pytest.mark.parametrize(
    ("means", "halves", "expected"),
    [
        ([50], [10], [[10], [10]]),
        ([95], [10], [[10], [5]]),
        ([3], [10], [[3], [10]]),
        ([100], [10], [[10], [0]]),
        ([0], [0], [[0], [0]]),
        ([np.nan], [0], [[np.nan], [np.nan]]),
    ],
)
def test_intervals_end_at_0_and_100_percent(means, halves, expected):
    np.testing.assert_array_equal(plots.within_percent(means, halves), expected)


def test_no_axis_shows_impossible_accuracies_nor_a_zero_on_a_log_scale(tmp_path, monkeypatch):
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    rows = [
        Row("coop", protocol, "toy", "accuracy", value, None, shots, seed, split, step)
        for protocol, splits in (("few_shot", ("all",)), ("base_to_new", ("base", "new")))
        for split in splits
        for shots in (1, 4)
        for step in (0, 1, 50)
        for seed, value in ((1, 0.9), (2, 1.0))
    ]
    assert plots.accuracy_against_shots(rows, tmp_path / "a.png")
    assert plots.adaptation(rows, tmp_path / "b.png")
    assert plots.base_new_h(rows, tmp_path / "c.png")
    for figure in figures:
        for axis in figure.axes:
            low, high = axis.get_xlim() if "%" in axis.get_xlabel() else axis.get_ylim()
            assert -1 <= low < high <= 101
            assert "log" not in axis.get_xlabel() or "0" not in [t.get_text() for t in axis.get_xticklabels()]
    for name, begin in (("a.png", b"\x89PNG"), ("b.pdf", b"%PDF"), ("c.svg", b"<?xml")):
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_files_of_the_same_figure_are_the_same_bytes(tmp_path):
    from matplotlib.figure import Figure

    for name in ("a", "b"):
        with plots.drawing(2, 1, 1) as (figure, axes):
            assert isinstance(figure, Figure)
            axes[0][0].plot([1, 2])
            plots.save(figure, tmp_path / f"{name}.png")
    for kind in plots.FORMATS:
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
