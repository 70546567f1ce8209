"""The values that settings choose from, as plain tuples: flags list them without importing what they name.

The names of a family are those that the library registers in its `REGISTRY`; the other tuples are what their modules
accept.
"""

TUNERS = ("adaptive", "cocoop", "coop", "dpt", "ivlp", "maple", "text_deep", "upt", "vpt", "vpt_kv")
REGULATORS = ("affine", "gated_low_rank", "identity", "kronecker", "mask", "prograd", "prometar", "structured")
REGULARIZERS = ("class_weights", "cpt", "distillation", "kgcoop", "logit_adjustment", "npt", "prometar", "promptsrc")
BASELINES = ("ensemble", "hand_crafted", "linear_probe", "tip_adapter")

OPTIMIZERS = ("sgd", "adam")
TEST_TIME_OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "warmup_cosine")
INNER_SCHEDULES = ("constant", "cosine")
AUGMENTATIONS = ("none", "fresh", "stored")
HEADS = ("text", "linear")
GATES = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights of the offset of a structured initialization
MAPPERS = ("shard_map", "pmap")
CROSS = ("class", "domain", "theme", "both", "pairs")
METRICS = (
    "per_class_accuracy",
    "worst_class_accuracy",
    "macro_f1",
    "expected_calibration_error",
    "cost",
    "all",
)
