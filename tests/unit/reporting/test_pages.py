"""Pages, read by Python's own HTML parser, against NumPy, SciPy and hand-made files."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from gram_jax import reporting
from gram_jax.data import Corpus, Dataset, load_dataset
from gram_jax.data.looks import Looked
from gram_jax.evaluation import Part, Predictions, Results, Row, measures
from gram_jax.evaluation.stored import save_predictions
from gram_jax.reporting import pages
from gram_jax.reporting.pages import charts, markup
from gram_jax.reporting.pages.images import thumbnail
from gram_jax.reporting.pages.page import MOST_BYTES, Budget
from gram_jax.tasks import Hierarchy

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"' onmouseover=alert(3) x='",
    "&lt;b&gt; & cat\x00",
    "--> ]]> <!-- dog",
    "javascript:alert(4) {}",
)


class Read(HTMLParser):
    """All tags, all attributes, and the visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.text += data


def is_harmless(path):
    """Whether a page has one script, no handlers, and reads nothing but what it holds; returns its text."""
    read = Read(path.read_text("utf-8"))
    assert read.tags.count("script") == 1
    assert not [name for name, _ in read.attributes if name.startswith("on") or name in ("srcdoc", "formaction")]
    links = [value for name, value in read.attributes if name in ("href", "src", "xlink:href", "action", "data")]
    assert all(re.match("data:image/(png|jpeg);base64,|#", link) for link in links)
    return read.text


def shown(name):
    """A name as a page shows it."""
    return name.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def square(value):
    return np.full((8, 8, 3), value, np.uint8)


def dataset(name, class_names, count, read=square):
    """As many test images as `count`, class after class."""
    labels = np.arange(count, dtype=np.int32) % len(class_names)
    splits = np.full(count, "test")
    references = tuple(f"{i % 250:03}/{i}" for i in range(count))
    return Dataset(name, references, labels, splits, tuple(class_names), "{}", lambda each: read(int(each[:3])))


def stored(folder, data, predicted, method="coop", shots=4, seed=1, probability=None):
    """Writes the predictions of one run and returns the row that belongs to them."""
    probability = np.full(len(data), 0.75) if probability is None else probability
    path = folder / "predictions" / f"{measures.file_name((method, data.name, 'few_shot', shots))}.npz"
    save_predictions(path, [(Part("all", None, data), Predictions(predicted[None], probability[None]))], 0, seed)
    value = float(np.mean(data.labels == predicted))
    return Row(method, "few_shot", data.name, "accuracy", value, None, shots, seed, "all", 5)


def results(rows, **config):
    return Results(config, {"packages": {"jax": "1.2.3"}, "command": "python -m experiments.evaluate"}, tuple(rows))


def test_names_are_text(tmp_path):
    data = dataset("folder:<b>&", HOSTILE, 24)
    predicted = np.roll(data.labels, 1)
    row = stored(tmp_path, data, predicted)
    about = {data.name: {"source": HOSTILE[0], "notes": [HOSTILE[1]]}}
    path = tmp_path / "report.html"
    given = {"folders": [tmp_path], "datasets": {data.name: data}, "names": [HOSTILE[2]]}
    reporting.html_report([results([row], datasets=about, note=HOSTILE[3])], path, **given)
    text = is_harmless(path)
    for name in (*HOSTILE, data.name):
        assert shown(name) in text
    assert text.count("taken for") >= 18
    assert f"python -m experiments.evaluate --workdir={tmp_path}" in text
    assert "jax1.2.3" in text


def test_names_are_text_on_the_other_pages(tmp_path):
    data = dataset(HOSTILE[0], HOSTILE, 12)
    looked = Looked(data)
    for position in range(12):
        looked.add(position, data[0])
    told = pages.CheckedDataset(data.name, data, [HOSTILE[1]], [HOSTILE[2]], looked.suspicious(), True)
    broken = pages.CheckedDataset(HOSTILE[3], None, ["cannot be read"], [])
    pages.check_page([told, broken], tmp_path / "check.html")
    text = is_harmless(tmp_path / "check.html")
    assert all(shown(name) in text for name in HOSTILE[:5])
    assert "Images of one color" in text
    assert "Equal images in several classes" in text

    best = [(HOSTILE[0], 0.75), (HOSTILE[1], 0.25)]
    predicted = [pages.Predicted(HOSTILE[2], lambda: square(3), best), pages.Predicted("a", bytes, (), HOSTILE[4])]
    counts = dict.fromkeys(HOSTILE, 1)
    page = tmp_path / "predictions.html"
    pages.predictions_page(pages.Predictions(predicted, counts, 1, 7), page, [("clip", HOSTILE[5])])
    text = is_harmless(page)
    assert all(shown(name) in text for name in HOSTILE)
    assert "75.0\u00a0%, " in text
    assert "6 images classified, 1 files not read" in text

    h = hierarchy(HOSTILE[:2], HOSTILE[2:4])
    corpus = Corpus("toy", HOSTILE, tuple(range(6)), square)
    pages.hierarchy_page(h, corpus, tmp_path / "hierarchy.html")
    text = is_harmless(tmp_path / "hierarchy.html")
    assert all(shown(name) in text for name in HOSTILE)


def hierarchy(texts, theme_texts):
    """Six pairs: four of the first class in two domains, two of the second; one theme each."""
    members, classes = np.arange(6), np.array([0, 0, 0, 0, 1, 1], np.int32)
    features, themes = np.zeros((6, 2), np.float32), np.array([0, 1], np.int32)
    domains = np.array([0, 0, 0, 1, 0, 0], np.int32)
    return Hierarchy(
        members, classes, domains, themes, tuple(texts), tuple(theme_texts), features, features[:2], {"a": 1}
    )


def test_a_hierarchy_names_sizes_and_domains(tmp_path):
    corpus = Corpus("toy", tuple(f"caption {i}" for i in range(8)), tuple(range(8)), square)
    pages.hierarchy_page(hierarchy(["cat", "dog"], ["pets", "others"]), corpus, tmp_path / "page.html")
    text = Read((tmp_path / "page.html").read_text()).text
    assert "2 themes, 2 classes, 6 pairs of 8" in text
    assert "pets 1 classes, 4 pairs" in text
    assert "4 pairs in 2 visual domains of 3, 1" in text
    assert "caption 0; caption 1" in text


def test_values_of_a_table_are_aligned_and_sorted_by():
    rows = [("b", markup.Value("10.0 ±1.0", 10.0), "x"), ("a", "-", 7), ("c", markup.Value("9", float("nan")), "")]
    text = markup.table(("name", "value", "note"), rows, caption="Numbers")
    assert re.findall(r'data-v="([^"]*)"', text) == ["10.0", "7.0"]
    assert text.count('<th scope="col" class="num">') == 2
    assert "filter" not in text.replace("filterable", "")
    assert "Filter" in markup.table(("n",), [(i,) for i in range(8)])
    assert markup.table(("n",), []) == ""


def test_calibration_against_a_loop():
    rng = np.random.default_rng(0)
    probability, right = rng.uniform(0.05, 1, 200), rng.uniform(size=200) < 0.6
    text = charts.calibration(probability, right)
    told = re.findall(r"mean probability (\d+) %, (\d+) % right, (\d+) images", text)
    expected = []
    for low in range(10):
        own = (probability > low / 10) & (probability <= (low + 1) / 10)
        if own.any():
            numbers = 100 * probability[own].mean(), 100 * right[own].mean(), own.sum()
            expected.append(tuple(f"{number:.0f}" for number in numbers))
    assert told == expected


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 10), (20, 20), (61, 97)])
def test_wilson_against_scipy(right, count):
    interval = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(charts.wilson(right / count, count), (interval.low, interval.high), atol=1e-12)


def test_confusion_shows_counts_and_the_classes_with_most_mistakes():
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(50)]
    counts = np.diag(rng.integers(1, 9, 50))
    counts[3, 47], counts[47, 12] = 5, 2
    picture, number = charts.confusion(counts, names)
    assert number == 40
    assert "class 3 as class 47: 5" in picture
    assert "class 47 as class 12: 2" in picture
    picture, number = charts.confusion(counts[:3, :3], names[:3])
    told = {(a, b): int(n) for a, b, n in re.findall(r"class (\d) as class (\d): (\d+)", picture)}
    assert told == {(str(i), str(i)): counts[i, i] for i in range(3)}
    assert number == 3


def test_curves_stay_inside_percent_and_survive_gaps():
    nan = float("nan")
    line = charts.Curve("a", "red", [99.0, nan, 100.0], [97.0, nan, 99.0], [101.0, nan, 104.0])
    text = charts.curves([line], ["start", 1, 2], "steps")
    heights = [
        float(y) for pair in re.search('polygon points="([^"]*)"', text)[1].split() for y in [pair.split(",")[1]]
    ]
    assert min(heights) >= 10
    assert text.count("<circle") == 2
    assert "nan" not in text


def test_plots_of_one_page_have_identifiers_of_their_own():
    svg = '<?xml version="1.0"?>\n<svg width="1pt" height="2pt"><defs>'
    svg += '<path id="m1" style="fill: #ffffff; stroke: #6b6b6b"/>'
    svg += '</defs><use xlink:href="#m1" clip-path="url(#c)"/></svg>'
    texts = [charts.adapted(svg, number) for number in (0, 1)]
    assert [re.findall(r"p\d-\w+", text) for text in texts] == [["p0-m1", "p0-m1", "p0-c"], ["p1-m1", "p1-m1", "p1-c"]]
    assert "var(--muted)" in texts[0]
    assert texts[0].startswith("<svg>")


def test_a_page_says_what_is_missing(tmp_path):
    data = dataset("toy", ("cat", "dog"), 20)
    rows = [stored(tmp_path, data, data.labels), Row("vpt", "few_shot", "toy", "accuracy", 0.5, None, 4, 1, "all", 5)]
    path = tmp_path / "report.html"

    def text(rows, **given):
        reporting.html_report([results(rows)], path, **given)
        return Read(path.read_text()).text

    assert "--save_predictions" in text(rows)
    told = text(rows, folders=[tmp_path], datasets={"toy": data})
    assert "--save_predictions" not in told
    assert "right, of 20 images" in told
    assert "predictions of another run" in text(
        [rows[0].__class__(**(vars(rows[0]) | {"value": 0.5}))], folders=[tmp_path]
    )
    wrong = [stored(tmp_path, data, 1 - data.labels)]
    assert "cannot be shown: no file tells where they are" in text(wrong, folders=[tmp_path])
    (tmp_path / "predictions" / "toy-few_shot-4-coop.npz").write_bytes(b"no zip")
    assert "holds no predictions" in text(wrong, folders=[tmp_path])


def test_images_that_changed_are_not_shown(tmp_path):
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 10), (9 * i, 90, 9)).save(folder / name / f"{i}.png")
    data = load_dataset(f"folder:{folder}")
    test = data.take(data.select("test"))
    row = stored(tmp_path, test, 1 - test.labels)
    given = Results({"dataset": [f"folder:{folder}"]}, {"splits": {data.name: data.content_hash}}, (row,))
    reporting.html_report([given], tmp_path / "report.html", folders=[tmp_path])
    assert (tmp_path / "report.html").read_text().count("<img src") == len(test)
    Image.new("RGB", (20, 10), "red").save(folder / "cat" / "0.png")
    reporting.html_report([given], tmp_path / "report.html", folders=[tmp_path])
    text = (tmp_path / "report.html").read_text()
    assert "<img src" not in text
    assert "they have changed since" in text


def test_a_thumbnail_is_small_and_not_larger_than_its_image():
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    budget = Budget(10**6)
    assert 'src="data:image/jpeg' in thumbnail(noise, "noise", budget)
    assert 'class="tiny"' in thumbnail(square(5), "<small>", budget)
    assert budget.left > 10**6 - 20_000
    assert thumbnail(noise, "noise", Budget(500)) is None


def test_a_large_report_is_less_than_five_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"a class with a long name, number {i}" for i in range(400)]
    noise = rng.integers(0, 256, (140, 140, 3), np.uint8)
    opened, rows = {}, []
    for number in range(6):
        data = dataset(f"toy {number}", names, 1200, read=lambda _: noise)
        opened[data.name] = data
        for method in ("coop", "vpt", "maple"):
            predicted = rng.integers(0, 400, 1200).astype(np.int32)
            rows.append(stored(tmp_path, data, predicted, method, probability=rng.uniform(size=1200)))
    path = tmp_path / "report.html"
    reporting.html_report([results(rows)], path, folders=[tmp_path], datasets=opened)
    assert 10**6 < path.stat().st_size < MOST_BYTES
    text = Read(path.read_text()).text
    assert "not shown, the page is full" in text
    assert "The 40 classes with the most mistakes, of 400." in text
