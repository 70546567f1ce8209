"""Names, order and pairs of methods."""

from gram_jax import objectives
from gram_jax.reporting import names


def test_methods_have_a_fixed_order():
    given = ["coop+gram:true_groups", "ivlp", "coop+gram:mine", "coop+gram:random_tasks", "coop+gram:regulator_only",
             "coop+gram:init_only", "coop+gram", "coop", "zero_shot:own", "zero_shot", "other"]  # fmt: skip
    assert [names.label(method) for method in names.ordered(given)] == [
        "zero-shot",
        "zero-shot, own template",
        "CoOp",
        "CoOp + GRAM",
        "CoOp + GRAM, initialization only",
        "CoOp + GRAM, regulator only",
        "CoOp + GRAM, random tasks",
        "CoOp + GRAM, mine",
        "CoOp + GRAM, true groups (ceiling)",
        "IVLP",
        "other",
    ]


def test_composed_methods_have_labels_order_and_pairs():
    methods = ["cocoop", "coop+prograd", "coop+kgcoop+npt:0.5+gram", "coop+kgcoop+npt:0.5", "coop+kgcoop+gram:mine",
             "coop+kgcoop", "coop+gram", "coop", "zero_shot", "other+own"]  # fmt: skip
    assert [names.label(name) for name in names.ordered(methods)] == [
        "zero-shot",
        "CoOp",
        "CoOp + GRAM",
        "CoOp + KgCoOp",
        "CoOp + KgCoOp + GRAM, mine",
        "CoOp + ProGrad",
        "CoOp + KgCoOp + NPT (weight 0.5)",
        "CoOp + KgCoOp + NPT (weight 0.5) + GRAM",
        "CoCoOp",
        "other + own",
    ]
    assert set(names.ADDITIONS) >= {*objectives.NAMES, "prograd", "gpa"}
    assert names.compared_pairs(methods) == [
        ("coop+kgcoop+npt:0.5+gram", "coop+kgcoop+npt:0.5"), ("coop+kgcoop+gram:mine", "coop+kgcoop"),
        ("coop+gram", "coop"),
    ]  # fmt: skip
    assert ("coop+kgcoop", "coop") in names.compared_pairs(methods, "coop")
