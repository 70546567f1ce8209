"""Measures training steps: time, compilation, memory and operations, next to the same steps in PyTorch.

    python -m experiments.benchmark --clip_size=vit_b32
    python -m experiments.benchmark --workloads=coop,gram_exact_5,rules --repeats=7
    python -m experiments.benchmark --clip_size=mini --workloads=clustering --pairs=100000

Weights are random; they do not affect the costs. A row is one workload. If PyTorch is installed (the extra `torch`),
all sides compute the same step in turns in one process: PyTorch as public code of the field does, and frugal PyTorch
with image features kept and texts cut (see `torch_workloads`). Their losses must agree to 1e-4, otherwise the
benchmark stops. The workloads `rules` and `image_rules` show the gain of each exact shortcut in a CoOp and a VPT step,
compared with the row before.

Time is the median over --repeats turns of --steps steps. The first step of a turn allocates memory and counts only if
it is the only one. Memory is measured in a separate process that computes one step, and excludes the clip and the
inputs; the compiler's number for our side includes both. Operations are those of matrix products, counted in the
program and, for PyTorch, by its own counter; their ratio is the expected speed-up on machines of equal efficiency. The
ceiling is the product of two square float32 matrices, measured in turns with the sides.

Two cores need about two hours at vit_b32, four at vit_b16 (mostly for UNIGRAM and clustering) and minutes at mini;
choose --workloads, or pass --nomemory, which saves one step of each side. A side that needs more than --max_gib is left
out with a note. After --max_seconds, a workload begins no further turn.

WORKDIR gets benchmark.jsonl (one line per workload; rerun the command to resume), results.json and table.md.
"""

from __future__ import annotations

import dataclasses

from gram_jax.errors import InputError, require_known

from .._launch import at_least, positive, setting

CLIPS = ("vit_b16", "vit_b32", "vit_l14", "mini")  # of `inputs.CLIPS`
# The names of `workloads.WORKLOADS`, which imports JAX.
WORKLOADS = (
    "coop", "coop_1000", "cocoop", "ivlp", "gram_exact_1", "gram_exact_5", "gram_first_order_1", "gram_first_order_5",
    "unigram_exact_1", "unigram_exact_5", "unigram_first_order_1", "unigram_first_order_5", "test_time", "evaluation",
    "rules", "image_rules", "clustering", "episodes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """The workloads, their sizes, and the limits of the measurements."""

    clip_size: str = setting("vit_b32", "size of the clip, whose weights are random", choices=CLIPS)
    workloads: tuple[str, ...] = setting(WORKLOADS, f"rows of the table: {', '.join(WORKLOADS)}")
    repeats: int = setting(3, "turns of each side")
    steps: int = setting(3, "steps of a turn; the first does not count if others follow")
    pairs: int = setting(1_000_000, "pairs to cluster")
    many_classes: int = setting(1000, "classes of coop_1000, the first ones of ImageNet, and of evaluation", most=1000)
    unroll: int = setting(4, "towers of at most this many layers are written out, longer ones are a loop")
    max_gib: float = setting(16.0, "workloads that need more memory are left out, GiB")
    max_seconds: float = setting(600.0, "a workload begins no further turn after this time, seconds")
    torch: bool = setting(True, "compare with PyTorch if it is installed")
    memory: bool = setting(True, "measure memory in separate processes (CPU only)")
    small: bool = setting(False, "tiny sizes and a tiny clip instead of --clip_size, for tests")

    def __post_init__(self) -> None:
        if not self.workloads:
            raise InputError(f"--workloads=: choose from {', '.join(WORKLOADS)}")
        for name in self.workloads:
            require_known("--workloads", name, WORKLOADS)
        at_least(self, 1, "repeats", "steps", "pairs")
        at_least(self, 2, "many_classes")
        at_least(self, 0, "unroll")
        positive(self, "max_gib", "max_seconds")
