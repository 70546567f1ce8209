"""Reports against NumPy and hand-made rows."""

import csv
import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from gram_jax import evaluation, reporting
from gram_jax.evaluation import Results, Row
from gram_jax.reporting import grid as grids
from gram_jax.reporting import names, plots, report
from gram_jax.reporting.notes import notes

T2 = 4.302652729911275  # the 97.5 % quantile of Student's t with two degrees of freedom, from a table
SEEDS, DATASETS = (1, 2, 3), ("glyphs:greek_small", "glyphs:digits")
METHODS = ("coop+gram:true_groups", "coop+gram", "coop", "coop+gram:init_only")


def accuracy(method, dataset, seed, split, domain=None, step=5, shots=4):
    """A number that depends on everything and has no pattern."""
    rng = np.random.default_rng(sum(map(ord, f"{method}{dataset}{seed}{split}{domain}{step}{shots}")))
    return float(rng.uniform(0.3, 0.9))


def tuned(method, protocol, *, shots=(4,), seeds=SEEDS, datasets=DATASETS, domains=(None,), steps=(0, 5)):
    splits = ("base", "new") if protocol == "base_to_new" else ("all",)
    return [
        Row(method, protocol, dataset, "accuracy", accuracy(method, dataset, seed, split, domain, step, k), domain, k,
            seed, split, step)
        for k, seed, dataset, domain, split, step in itertools.product(shots, seeds, datasets, domains, splits, steps)
    ]  # fmt: skip


def zero_shot(protocol, *, value=0.5, datasets=DATASETS, domains=(None,), method="zero_shot"):
    splits = ("base", "new") if protocol == "base_to_new" else ("all",)
    return [
        Row(method, protocol, dataset, "accuracy", value, domain, split=split)
        for dataset, domain, split in itertools.product(datasets, domains, splits)
    ]


def results(rows, config=None, **environment):
    return Results(config or {}, environment, tuple(rows))


@pytest.fixture(scope="module")
def rows():
    found = [row for method in METHODS for row in tuned(method, "base_to_new", shots=(1, 4))]
    found += [row for method in METHODS for row in tuned(method, "few_shot", shots=(1, 4), domains=(None, "a", "b"))]
    found += zero_shot("base_to_new") + zero_shot("few_shot", domains=(None, "a", "b"))
    for metric, low in (("gradient_norm_ratio", 0.5), ("gradient_cosine", 0.8)):
        for dataset, seed, step in itertools.product(DATASETS, SEEDS, (1, 2, 5)):
            value = low + accuracy(metric, dataset, seed, step) / 10
            found.append(Row("coop+gram", "regulation", dataset, metric, value, None, 4, seed, "all", step))
    return found


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report")
    return workdir, reporting.write_report([results(rows, weights="w" * 64, git=None)], workdir)


def cell(text, title, row, column):
    """A cell of a Markdown table under a title."""
    lines = text.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
    header, *body = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    return next(line for line in body if line[0] == row)[header.index(column)].strip("*")  # bold or not


def spread(values):
    """Mean and half the 95 % interval over three seeds, in %."""
    values = 100 * np.asarray(values)
    return values.mean(), T2 * values.std(ddof=1) / np.sqrt(3)


def per_seed(method, split, protocol="base_to_new", domains=(None,), **settings):
    """[seeds, items] accuracies, by a plain loop."""
    return np.array([[accuracy(method, d, s, split, o, **settings) for d in DATASETS for o in domains] for s in SEEDS])


def harmonic(method, **settings):
    base, new = per_seed(method, "base", **settings), per_seed(method, "new", **settings)
    return 2 * base * new / (base + new)


def test_base_to_new_table(written):
    _, text = written
    title, row = "Base-to-new, 4 shots", "CoOp + GRAM"
    base, new = per_seed("coop+gram", "base"), per_seed("coop+gram", "new")
    for column, values in (("base", base), ("new", new), ("mean of H", harmonic("coop+gram"))):
        assert cell(text, title, row, column) == "{:.1f} ±{:.1f}".format(*spread(values.mean(axis=1)))
    h = 2 * base.mean() * new.mean() / (base.mean() + new.mean())
    assert cell(text, title, row, "H of means") == f"{100 * h:.1f}"
    mean, half = spread(harmonic("coop+gram").mean(axis=1) - harmonic("coop").mean(axis=1))
    column = "mean of H, difference to the tuner"
    assert cell(text, title, row, column) == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert cell(text, title, "CoOp", column) == "-"
    assert cell(text, title, "zero-shot", "mean of H") == "50.0"  # no draw, no interval


def test_few_shot_tables(written):
    _, text = written
    values = per_seed("coop", "all", shots=1).mean(axis=1)
    assert cell(text, "Accuracy: few-shot", "CoOp", "1 shot") == "{:.1f} ±{:.1f}".format(*spread(values))
    shifted = {m: per_seed(m, "all", domains=("a", "b")).mean(axis=1) for m in ("coop", "coop+gram:init_only")}
    title, row = "Accuracy: few-shot, shifted domains", "CoOp + GRAM, initialization only"
    assert cell(text, title, row, "4 shots") == "{:.1f} ±{:.1f}".format(*spread(shifted["coop+gram:init_only"]))
    mean, half = spread(shifted["coop+gram:init_only"] - shifted["coop"])
    expected = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert cell(text, title, row, "4 shots, difference to the tuner") == expected


def test_tables_along_adaptation_and_by_dataset(written):
    _, text = written
    title = "Along adaptation: mean of H (base-to-new, 4 shots)"
    for step, column in ((0, "0 steps"), (5, "5 steps")):
        values = harmonic("coop", step=step).mean(axis=1)
        assert cell(text, title, "CoOp", column) == "{:.1f} ±{:.1f}".format(*spread(values))
    title = "H by dataset: base-to-new, 4 shots"
    values = harmonic("coop+gram")
    for index, dataset in enumerate(DATASETS):
        assert cell(text, title, dataset, "CoOp + GRAM") == "{:.1f} ±{:.1f}".format(*spread(values[:, index]))
    assert cell(text, title, "mean", "CoOp + GRAM") == "{:.1f} ±{:.1f}".format(*spread(values.mean(axis=1)))


def test_csv_holds_all_digits(written):
    workdir, _ = written
    lines = list(csv.DictReader(io.StringIO((workdir / "table.csv").read_text())))
    found = {(line["table"], line["row"], line["column"]): line for line in lines}
    assert len(found) == len(lines)
    line = found["Base-to-new, 4 shots", "coop+gram", "base"]
    mean, half = spread(per_seed("coop+gram", "base").mean(axis=1))
    numbers = [float(line[column]) for column in ("percent", "ci95_low", "ci95_high")]
    np.testing.assert_allclose(numbers, [mean, mean - half, mean + half], rtol=1e-9)
    assert (line["n"], line["p_value"]) == ("3", "")
    p = stats.ttest_rel(*(harmonic(method).mean(axis=1) for method in ("coop+gram", "coop"))).pvalue
    line = found["Base-to-new, 4 shots", "coop+gram", "mean of H, difference to the tuner"]
    np.testing.assert_allclose(float(line["p_value"]), p)
    name = "coop+gram against coop: mean of H (base-to-new, 4 shots)"
    assert found["Paired differences over seeds", name, "points, 95 % interval"]["p_value"] == line["p_value"]
    line = found["Base-to-new, 4 shots", "zero_shot", "new"]
    assert (line["percent"], line["ci95_low"], line["n"]) == ("50.0", "", "1")


def test_the_last_step_of_each_method_counts():
    rows = tuned("coop", "few_shot", steps=(0, 1, 20)) + tuned("coop+gram", "few_shot", steps=(0, 1, 5))
    (scope,) = (scope for scope in grids.WITHIN_DATASET if grids.shots_of(rows, scope))
    grid = grids.measure(rows, scope, 4)
    assert grid.steps == {"coop": 20, "coop+gram": 5}
    np.testing.assert_allclose(grid.values["coop"]["all"].T, per_seed("coop", "all", step=20))
    assert grids.common_steps(rows, scope, 4) == [0, 1]
    note = notes(rows, [], {}, [], [])[1]
    assert note.endswith("means over 2 datasets x 3 seeds, after 20 steps (CoOp), 5 steps (CoOp + GRAM).")


def test_only_shared_draws_are_averaged(tmp_path):
    rows = tuned("coop", "few_shot") + tuned("coop+gram", "few_shot") + zero_shot("few_shot", value=0.25)
    rows = [row for row in rows if (row.method, row.dataset, row.seed) != ("coop+gram", DATASETS[0], 2)]
    text = reporting.write_report([results(rows)], tmp_path)
    kept = per_seed("coop", "all")[[0, 2]].mean(axis=1)  # seed 2 is gone for all
    assert cell(text, "Accuracy: few-shot", "CoOp", "4 shots").startswith(f"{100 * kept.mean():.1f} ±")
    assert (
        "Few-shot, 4 shots: means over 2 datasets x 2 seeds, after 5 gradient steps; 2 draws excluded, because not "
        "every method has them all (CoOp + GRAM lacks 1)."
    ) in text


@pytest.mark.parametrize(
    ("holes", "items", "seeds"),
    [
        ([], "ab", (1, 2, 3, 4)),
        ([("a", 1)], "ab", (2, 3, 4)),  # a seed costs one more measurement, the item three
        ([("a", 1), ("a", 2), ("a", 3)], "b", (1, 2, 3, 4)),
    ],
)
def test_rectangle_keeps_what_it_can(holes, items, seeds):
    present = np.array([[(item, seed) not in holes for seed in (1, 2, 3, 4)] for item in "ab"])
    rows, columns = grids.rectangle(present)
    assert ["ab"[i] for i in rows] == list(items)
    assert [i + 1 for i in columns] == list(seeds)


def test_methods_without_a_shared_draw_are_shown_each_on_its_own(tmp_path):
    rows = tuned("coop", "base_to_new", seeds=(1, 2)) + tuned("coop+gram", "base_to_new", seeds=(3, 4))
    text = reporting.write_report([results(rows)], tmp_path)
    for method, name, seeds in (("coop", "CoOp", (1, 2)), ("coop+gram", "CoOp + GRAM", (3, 4))):
        values = [[accuracy(method, dataset, seed, "base") for seed in seeds] for dataset in DATASETS]
        mean = 100 * np.mean(values)
        assert cell(text, "Base-to-new, 4 shots", name, "base").startswith(f"{mean:.1f} ")
    assert "difference to the tuner" not in text
    assert "each method on its own draws, because they share none (CoOp lacks 4, CoOp + GRAM lacks 4)" in text
    assert not (tmp_path / "base_new_h.png").exists()


def test_a_draw_without_its_new_classes_is_left_out(tmp_path):
    rows = [row for row in tuned("coop", "base_to_new") if (row.seed, row.split) != (1, "new")]
    grid = grids.measure(rows, grids.Scope("base_to_new", False), 4)
    assert grid.seeds == (2, 3)


def test_comparisons_are_paired_over_seeds(tmp_path):
    methods = ("coop", "coop+gram", "vpt+gram", "ivlp", "ivlp+gram")
    rows = [row for method in methods for row in tuned(method, "base_to_new") + tuned(method, "few_shot", seeds=(1,))]
    found = reporting.comparisons(rows)
    pairs = [("coop+gram", "coop"), ("ivlp+gram", "ivlp"), ("ivlp+gram", "coop+gram"), ("ivlp+gram", "vpt+gram")]
    assert [(c.a, c.b) for c in found] == 2 * pairs
    first, last = found[2], found[-1]
    mean, half = spread(harmonic("ivlp+gram").mean(axis=1) - harmonic("coop+gram").mean(axis=1))
    assert (first.metric, first.over, first.n) == ("mean of H (base-to-new, 4 shots)", "seed", 3)
    np.testing.assert_allclose(
        [100 * first.mean_difference, *(100 * np.array(first.ci95))], [mean, mean - half, mean + half]
    )
    p = stats.ttest_rel(*(harmonic(method).mean(axis=1) for method in ("ivlp+gram", "coop+gram"))).pvalue
    np.testing.assert_allclose(first.p_value, p)
    assert (last.metric, last.ci95, last.p_value, last.n) == ("accuracy (few-shot, 4 shots)", None, None, 1)
    evaluation.write_results(tmp_path / "results.json", dataclasses.replace(results(rows), comparisons=found))
    text = reporting.write_report([results(rows)], tmp_path)
    shown = cell(
        text, "Multi-modal against single-modal GRAM", "mean of H (base-to-new, 4 shots)",
        "IVLP + GRAM against CoOp + GRAM",
    )  # fmt: skip
    assert shown == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    title, row = "Paired differences over seeds", "IVLP + GRAM against CoOp + GRAM: "
    assert cell(text, title, row + first.metric, "points, 95 % interval") == shown
    assert cell(text, title, row + first.metric, "p (paired t-test)") == f"{p:.3f}"
    assert cell(text, title, row + first.metric, "seeds") == "3"
    assert cell(text, title, row + "accuracy (few-shot, 4 shots)", "p (paired t-test)") == "-"
    # Without its tuner alone, a method has no difference to the tuner: multi-modal to single-modal is another one.
    text = reporting.write_report([results([row for row in rows if row.method != "ivlp"])], tmp_path)
    assert cell(text, "Base-to-new, 4 shots", "IVLP + GRAM", "mean of H, difference to the tuner") == "-"


def test_equal_draws_are_merged_and_contradicting_files_have_lines_of_their_own():
    rows = tuned("coop", "few_shot")
    assert reporting.merge([results(rows), results(rows[3:])], ["a.json", "b.json"]) == rows
    other = dataclasses.replace(rows[3], value=0.123)
    merged = reporting.merge([results(rows), results([other])], ["a.json", "b.json"])
    assert merged[-1] == dataclasses.replace(other, method="coop @ b")
    assert [row.method for row in merged[:-1]] == ["coop @ a"] * len(rows)


def test_validation_images_are_named(tmp_path):
    rows, shown = tuned("coop", "few_shot"), []
    reporting.write_report([results(rows, {"split": "val"})], tmp_path, names=["a"], show=shown.append)
    assert "a: measured on **validation images**" in shown[0]
    assert "validation" not in reporting.write_report([results(rows, {"split": "test"})], tmp_path, names=["a"])


# What makes a configuration (two lines) and what does not (one).
BASE = {"learning_rate": [0.1], "tuner_settings": {"num_tokens": 4}, "seeds": [1], "max_test_images": 0}


@pytest.mark.parametrize(
    ("config", "environment", "labels"),
    [
        ({"learning_rate": [0.3]}, {}, ["learning_rate=0.1", "learning_rate=0.3"]),
        ({"learning_rate": [0.3], "max_test_images": 9}, {}, [f"{r}, max_test_images={n}" for r, n in
         (("learning_rate=0.1", 0), ("learning_rate=0.3", 9))]),
        ({"tuner_settings": {"num_tokens": 16}}, {}, ["num_tokens=4", "num_tokens=16"]),
        ({"compute_dtype": "bfloat16"}, {}, None),  # not told by the other file
        ({}, {"weights": "b" * 64}, ["weights=" + "a" * 12, "weights=" + "b" * 12]),
        ({}, {"splits": {"glyphs:digits": "x2"}}, ["content of glyphs:digits=x1", "content of glyphs:digits=x2"]),
        ({}, {"splits": {"another": "x2"}}, None),
        ({"seeds": [2, 3], "dataset": ["glyphs:digits"], "image_batch": 4, "save_prompts": True}, {}, None),
        ({"clip": "/elsewhere/clip", "files": {"/tmp/m": "x"}}, {"git": "other"}, None),
        ({"split": "val"}, {}, ["split=test", "split=val"]),  # a file that does not tell it has test images
        ({"method_settings": {"coop": {"steps": 3}}}, {}, None),  # nothing that both files tell
    ],
)  # fmt: skip
def test_settings_that_change_numbers_are_never_pooled(config, environment, labels):
    where = {"weights": "a" * 64, "splits": {"glyphs:digits": "x1"}}
    first = results(tuned("coop", "few_shot", seeds=(1,), datasets=DATASETS[1:]), BASE, **where)
    second = tuned("coop", "few_shot", seeds=(2,), datasets=DATASETS[1:])
    merged = reporting.merge([first, results(second, BASE | config, **(where | environment))], ["a", "b"])
    assert list(dict.fromkeys(row.method for row in merged)) == [f"coop @ {each}" for each in labels or ()] or ["coop"]
    assert len(merged) == len(first.rows) + len(second)


def test_gram_is_compared_with_the_tuner_of_its_configuration_or_the_shared_one():
    def of(rate, own):
        settings = {"coop": {"rate": own}, "coop+gram": {"rate": rate}}
        rows = tuned("coop", "few_shot") + tuned("coop+gram", "few_shot")
        return results(rows, {"method_settings": settings})

    pairs = lambda files: {(c.a, c.b) for c in reporting.comparisons(reporting.merge(files, ["a", "b"]))}  # noqa: E731
    assert pairs([of(1, 0), of(2, 0)]) == {("coop+gram @ rate=1", "coop"), ("coop+gram @ rate=2", "coop")}
    assert pairs([of(1, 1), of(2, 2)]) == {(f"coop+gram @ rate={rate}", f"coop @ rate={rate}") for rate in (1, 2)}


def test_significant_differences_are_bold_in_markdown_and_latex(tmp_path):
    def of(method, gains):
        return [
            Row(method, "few_shot", "toy", "accuracy", 0.5 + gain, None, 4, seed, "all", 5)
            for seed, gain in enumerate(gains)
        ]

    rows = of("coop", (0, 0, 0)) + of("coop+gram", (0.1, 0.11, 0.12)) + of("coop+gram:init_only", (-0.1, 0.1, 0.02))
    text = reporting.write_report([results(rows)], tmp_path)
    assert "| **+11.0 [+8.5, +13.5]** |" in text
    assert " +0.7 [-24.3, +25.7] |" in text  # 4.303 standard errors, Student's t with two degrees
    latex = (tmp_path / "table.tex").read_text()
    assert r"& \textbf{+11.0 [+8.5, +13.5]} \\" in latex
    assert r"& +0.7 [$-$24.3, +25.7] \\" in latex
    assert r"CoOp + GRAM, initialization only" in latex
    assert "**" not in latex
    assert "+gram" not in text + latex


def test_a_terminal_gets_a_screen_and_what_must_be_known(rows, tmp_path):
    shown = []
    reporting.write_report([results(rows)], tmp_path, show=shown.append)
    text = "\n".join(shown)
    assert text.count("\n") <= 50
    assert "Base-to-new, 1 shot" in text
    assert " more tables" in text
    fewer = [row for row in rows if (row.method, row.seed) != ("coop", 2)]
    reporting.write_report([results(fewer)], tmp_path, show=shown.append)
    assert "excluded" in shown[-1]


def test_a_plot_that_fails_is_a_warning(rows, tmp_path, monkeypatch, caplog):
    def fails(*_, **__):
        raise RuntimeError("no such backend")

    monkeypatch.setitem(report.PLOTS, "adaptation", fails)
    reporting.write_report([results(rows)], tmp_path)
    assert "adaptation.png could not be drawn: RuntimeError: no such backend" in caplog.text
    assert not (tmp_path / "adaptation.png").exists()
    assert (tmp_path / "base_new_h.png").exists()
    assert (tmp_path / "table.csv").exists()


def test_the_footer_says_in_what_files_differ(tmp_path):
    a = results(tuned("coop", "few_shot"), {"clip": "mini", "steps": [5]}, weights="a" * 64, splits={"digits": "x1"})
    b = results(tuned("ivlp", "few_shot"), {"clip": "mini", "steps": [9]}, weights="b" * 64, splits={"digits": "x2"})
    text = reporting.write_report([a, b], tmp_path, names=["a.json", "b.json"])
    for line in (
        "a.json: clip weights aaaaaaaaaaaa, code unknown.",
        "**The files have different clips**",
        'The files differ in the split of digits: "x1" in a.json; "x2" in b.json.',
        "The files differ in the setting steps: [5] in a.json; [9] in b.json.",
    ):
        assert line in text
    assert "setting clip" not in text
    alike = reporting.write_report([a, dataclasses.replace(b, config=a.config, environment=a.environment)], tmp_path)
    assert "The files" not in alike


def test_what_cannot_be_shown_is_said(tmp_path):
    other = Row("zero_shot:own", "zero_shot", "toy", "accuracy", 0.5)
    text = reporting.write_report([results([*zero_shot("few_shot"), other])], tmp_path)
    assert cell(text, "Accuracy: few-shot", "zero-shot", "no shots") == "50.0"
    assert "Not shown: 1 row of the protocol zero_shot." in text
    with pytest.raises(ValueError, match=r"no accuracy of few_shot, .* in z\.json; found zero_shot"):
        reporting.write_report([results([other])], tmp_path, names=["z.json"])
    with pytest.raises(ValueError, match="--shots=3 was not measured; the files have 4"):
        reporting.write_report([results(tuned("coop", "few_shot"))], tmp_path, shots=3)


def test_plots_are_pictures(written):
    workdir, _ = written
    drawn = {path.stem for path in workdir.glob("*.png")}
    assert drawn == {"accuracy_against_shots", "adaptation", "base_new_along_tuning", "base_new_h", "regulation"}
    for name in drawn:
        with Image.open(workdir / f"{name}.png") as picture:
            assert picture.width == 1350
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_costs_are_shown_and_may_differ_between_files(tmp_path):
    def cost(metric, dataset, value, method="coop"):
        return Row(method, "few_shot", dataset, metric, value, None, 4, None, "all", 5)

    rows = [*tuned("coop", "few_shot"), cost("tuning_seconds", "a", 0.25), cost("tuning_seconds", "b", 1.5)]
    rows += [cost("step_bytes", "a", 3 * 2.0**20)]
    text = reporting.write_report([results(rows), results([cost("tuning_seconds", "a", 0.5)])], tmp_path)
    title = "Time and memory of tuning"
    assert cell(text, title, "CoOp", "seconds a run, 4 shots") == "0.25 to 1.5"
    assert cell(text, title, "CoOp", "MiB a step, 4 shots") == "3"


def test_plots_show_the_numbers(rows, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    assert plots.accuracy_against_shots(rows, tmp_path / "a.png")
    assert plots.regulation(rows, tmp_path / "b.png")
    assert plots.base_new_h(rows, tmp_path / "c.png")
    lines = {
        container.get_label(): container
        for container in figures[0].axes[0].containers  # base-to-new
    }
    line, _, (bars,) = lines["+ GRAM"].lines
    expected = [spread(harmonic("coop+gram", shots=shots).mean(axis=1)) for shots in (1, 4)]
    np.testing.assert_allclose(line.get_ydata(), [mean for mean, _ in expected])
    np.testing.assert_allclose(
        [segment[:, 1] for segment in bars.get_segments()], [[m - h, m + h] for m, h in expected]
    )
    assert lines["+ GRAM"].lines[0].get_color() == plots.STYLES["gram"].color
    ratio = next(line for line in figures[1].axes[0].lines if line.get_label().startswith("mean"))
    values = [
        np.mean([0.5 + accuracy("gradient_norm_ratio", d, s, step) / 10 for d in DATASETS for s in SEEDS])
        for step in (1, 2, 5)
    ]
    np.testing.assert_allclose(ratio.get_ydata(), values)
    shown = [tick.get_text() for tick in figures[2].axes[0].get_yticklabels()]
    assert shown == [names.label(method) for method in names.ordered([*METHODS, "zero_shot"])]
    shown = [text.get_text() for text in figures[2].axes[1].texts]
    assert shown[1] == f"{100 * per_seed('coop', 'new').mean():.1f}"


def test_plots_without_rows_are_skipped_and_old_ones_removed(tmp_path):
    (tmp_path / "regulation.png").write_bytes(b"of an earlier report")
    reporting.write_report([results(tuned("coop", "few_shot", steps=(5,)))], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md", "table.tex"]
