"""Classes spread over devices and run in chunks: the same numbers, less memory a device, one compilation, no large
messages."""

import json
import re

import pytest

from tests.system.processes import finish, start
from tests.system.test_device_processes import python

FLAGS = (
    "--dataset=glyphs:chess", "--protocol=base_to_new", "--shots=2", "--seeds=1,2", "--steps=3", "--learning_rate=0.3",
    "--metrics=expected_calibration_error", "--report_steps=0",
)  # fmt: skip

STEPS = """
    import json, re
    import jax, jax.numpy as jnp, numpy as np
    from gram_jax import evaluation, regulators, tuners
    import gram_jax as gram
    from gram_jax.testing import tiny_clip

    words = ("small", "red", "green", "large")
    names = [f"{a} {b} {c} cat" for a in words for b in words for c in words]
    images = 0.5 * jax.random.normal(jax.random.key(1), (2, 8, 16))
    labels = np.arange(16).reshape(2, 8) * 4
    tuner = tuners.coop(num_tokens=4, init_text=None)
    tuning = gram.tuning.make_tuning(tuner, regulators.identity(), momentum=0.9)
    keys = jax.random.split(jax.random.key(0), 2)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )

    def run(spread):
        clip = tiny_clip(text_layers=2)
        bench = evaluation.Encoder(clip, shard_classes=spread)
        classes, valid = bench.classes(tuner, tuple(names))
        prompts = jax.vmap(lambda key: tuner.init(key, clip, None))(keys)
        state = bench.place(tuning.init(prompts))
        batch = {"classes": classes, "valid": valid, "images": images, "labels": labels}
        lowered = tuning.lower(state, {"context": {}}, bench.clip, batch, 0.5, 3)
        program = lowered.compile()
        compiled.clear()
        for _ in range(3):
            state, metrics = tuning.step(state, {"context": {}}, bench.clip, batch, 0.5, 3)
        scores = tuning.logits(state.prompts, bench.clip, classes, images[0])
        messages = re.findall(r"= (.*?) all-(?:gather|reduce|to-all)\\(", program.as_text())
        return {
            "prompts": np.asarray(state.prompts["context"]).tolist(),
            "logits": np.asarray(scores).tolist(),
            "loss": np.asarray(metrics["loss"]).tolist(),
            "bytes": program.memory_analysis().temp_size_in_bytes,
            "largest": max([np.prod([int(n) for n in re.findall(r"\\d+", dims)] or [1]).item()
                            for shapes in messages for dims in re.findall(r"f32\\[([\\d,]*)\\]", shapes)] or [0]),
            "compiled": len(compiled),
            "devices": len(classes.tree.ids.sharding.device_set),
            "ends": classes.tree.ends.size,
        }

    print(json.dumps([run(False), run(True)]))
"""


def test_a_step_on_four_devices_is_the_step_on_one():
    process = python(STEPS, devices=4)
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    alone, spread = json.loads(printed)
    assert (alone["devices"], spread["devices"]) == (1, 4)
    for name, tolerance in (("prompts", 1e-5), ("logits", 1e-4), ("loss", 1e-5)):
        difference = [abs(a - b) for a, b in zip(flat(alone[name]), flat(spread[name]), strict=True)]
        assert max(difference) < tolerance, name
    # The prefix and the logits are whole on every device, the texts are not.
    assert spread["bytes"] < 0.5 * alone["bytes"]
    # What crosses between devices is of the size of prompts and features, never of activations of the rows' tokens:
    # 2 runs x 12 rows x 32 tokens x 24 floats.
    assert 0 < spread["largest"] <= 2 * spread["ends"] * 16
    assert spread["compiled"] - alone["compiled"] <= 1  # the step was compiled before; the logits once


CHUNKS = """
    import dataclasses, json
    import jax, numpy as np
    from gram_jax import evaluation, regulators, tuners
    import gram_jax as gram
    from gram_jax.testing import tiny_clip

    words = ("small", "red", "green", "large")
    names = [f"{a} {b} {c} {d} cat {e}" for a in words for b in words for c in words for d in words for e in words[:2]]
    tuner = tuners.coop(num_tokens=4, init_text=None)
    tuning = gram.tuning.make_tuning(tuner, regulators.identity())
    found = []
    for spread in (False, True):
        bench = evaluation.Encoder(clip := tiny_clip(text_layers=2), shard_classes=spread)
        classes, valid = bench.classes(tuner, tuple(names))
        chunk = -(-19 * len(names) // len(classes.tree.ids))  # 19 rows, which four devices cannot share evenly
        bench.clip = bench.clip.replace(config=dataclasses.replace(clip.config, class_chunk=chunk))
        state = bench.place(tuning.init(jax.tree.map(lambda x: x[None], tuner.init(jax.random.key(0), clip, None))))
        batch = {"classes": classes, "valid": valid, "images": np.ones((1, 8, 16)) / 4, "labels": np.zeros((1, 8), int)}
        program = tuning.lower(state, {"context": {}}, bench.clip, batch, 0.5, 3).compile()
        found.append(program.memory_analysis().temp_size_in_bytes)
    print(json.dumps(found))
"""


def test_every_chunk_is_shared_by_the_devices():
    process = python(CHUNKS, devices=4)
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    alone, spread = json.loads(printed)
    assert spread < 0.5 * alone


def flat(nested):
    return [each for part in nested for each in flat(part)] if isinstance(nested, list) else [nested]


@pytest.mark.slow
def test_flags_give_the_same_rows_and_tell_the_memory(tmp_path):
    cache = tmp_path / "cache"
    (printed,) = finish(start("evaluate", tmp_path / "one", *FLAGS, cache=cache))
    assert re.search(r"coop, glyphs:chess, 6 classes: a step needs 0\.\d+ GiB\n", printed), printed
    (printed,) = finish(
        start("evaluate", tmp_path / "four", *FLAGS, "--shard_classes", "--class_chunk=4", devices=4, cache=cache)
    )
    assert re.search(r"coop, glyphs:chess, 6 classes: a step needs 0\.\d+ GiB on each of 4 devices\n", printed), printed
    one, four = (json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("one", "four"))
    key = [[row[name] for name in ("method", "split", "seed", "step", "metric")] for row in one]
    assert key == [[row[name] for name in ("method", "split", "seed", "step", "metric")] for row in four]
    assert {row["metric"] for row in one} >= {"accuracy", "expected_calibration_error"}
    for a, b in zip(one, four, strict=True):
        assert abs(a["value"] - b["value"]) < (2e-2 if a["metric"] == "accuracy" else 1e-4), (a, b)


def test_devices_that_cannot_share_class_lists_evenly_are_refused(tmp_path):
    (process,) = start("evaluate", tmp_path, *FLAGS, "--shard_classes", devices=3)
    _, errors = process.communicate(timeout=300)
    assert process.returncode
    assert "multiple of 16" in errors
    assert "3 devices" in errors
