"""experiments.benchmark.scaling: what it reads from compiled programs, and one small measurement."""

import jax
import pytest
from etils import epath

import gram_jax as gram
from experiments.benchmark import scaling
from gram_jax import regulators, tuners
from gram_jax.testing import tiny_clip


@pytest.mark.parametrize(
    ("program", "size"),
    [
        ("%x = f32[3,5]{1,0} all-reduce(f32[3,5]{1,0} %y), channel_id=1", 60),
        (
            "%x = (f32[8]{0}, bf16[4,2]{1,0}, f32[]) all-reduce(%a, %b, %c)\n%z = f32[2]{0} all-reduce(%x)",
            32 + 16 + 4 + 8,
        ),
        ("%x = f32[8]{0} all-gather(%y), dimensions={0}\n%z = f32[8]{0} add(%x, %x)", 0),
    ],
)
def test_bytes_of_all_reduces_are_read_from_the_program(program, size):
    assert scaling.all_reduce_bytes(program) == size


@pytest.mark.parametrize("change", [{"devices": (0,)}, {"tasks": 0}, {"steps": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=f"--{next(iter(change))}="):
        scaling.Config(**change)


@pytest.mark.slow
def test_what_is_sent_is_the_gradient_on_devices_and_on_processes(tmp_path):
    clip = tiny_clip(text_layers=1, vision_layers=1)
    gram.save_clip(clip, tmp_path / "clip")
    prompt = tuners.coop(init_text="a photo of a").init(jax.random.key(0), clip, None)
    phi = regulators.gated_low_rank(rank=scaling.RANK).init(jax.random.key(1), prompt)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves((prompt, phi)))
    config = scaling.Config(clip=str(tmp_path / "clip"), devices=(2,), processes=(2,), tasks=1, steps=2)
    rows = scaling.run(config, epath.Path(tmp_path)).rows
    assert [(row.method, row.metric) for row in rows] == [
        (name, metric) for name in ("1 x 2", "2 x 1") for metric in scaling.METRICS
    ]
    assert {row.value for row in rows if row.metric == "all_reduce_bytes"} == {gradient}
    assert all(row.value > 0 for row in rows)
