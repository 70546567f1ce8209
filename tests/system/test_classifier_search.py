"""PromptClassifier inside scikit-learn's searches, over lists of paths."""

import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

import gram_jax as gram
from tests.unit.test_classifier import QUICK, clip_path, photos  # noqa: F401  # a fixture


def test_cross_validation_and_grid_search_over_paths(clip_path, tmp_path):  # noqa: F811  # the fixture
    images, labels = photos(4)
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    model = gram.PromptClassifier(clip_path, **QUICK)
    scores = cross_val_score(model, paths, labels, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    search = GridSearchCV(model, {"tuner": ["coop", "coop(num_tokens=2)"]}, cv=2).fit(paths, labels)
    assert search.best_params_["tuner"].startswith("coop")
    assert not hasattr(clone(search.best_estimator_), "scorer_")


def test_scikit_learn_is_imported_when_it_is_used():
    code = (
        "import sys, gram_jax; assert 'sklearn' not in sys.modules; gram_jax.PromptClassifier; sys.modules['sklearn']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
