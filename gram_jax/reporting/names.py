"""The names of methods in tables and plots, and their order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

TUNERS = {
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "vpt": "VPT",
    "vpt_kv": "VPT, keys and values",
    "text_deep": "deep language prompts",
    "ivlp": "IVLP",
    "maple": "MaPLe",
    "upt": "UPT",
    "dpt": "DPT",
    "csp": "CSP",
    "dfsp": "DFSP",
    "troika": "Troika",
    "drpt": "DRPT",
    "gram": "GRAM",
}
BASELINES = {
    "ensemble": "ensemble of templates",
    "hand_crafted": "hand-crafted template",
    "joint": "all tasks at once",
    "l2": "L2 to the last prompt",
    "linear_probe": "linear probe",
    "nearest_mean": "nearest class mean",
    "null_space": "null space",
    "tip_adapter": "Tip-Adapter",
}
# Additions to a tuner, each after a "+", with its weight after ":" if that differs from the published one.
ADDITIONS = {
    "class_weights": "class weights",
    "cpt": "CPT",
    "distillation": "distillation",
    "gpa": "GPA",
    "kgcoop": "KgCoOp",
    "logit_adjustment": "logit adjustment",
    "npt": "NPT",
    "null_space": "null space",
    "prograd": "ProGrad",
    "prometar": "ProMetaR",
    "promptsrc": "PromptSRC",
    "staged": "staged loss",
    "tpt": "TPT",
}
ROLES = {
    "tuner": "",
    "gram": " + GRAM",
    "following": " + GRAM, following class names",
    "init_only": " + GRAM, initialization only",
    "init_only:following": " + GRAM, initialization only, following class names",
    "regulator_only": " + GRAM, regulator only",
    "random_tasks": " + GRAM, random tasks",
    "true_groups": " + GRAM, true groups (ceiling)",
}
ZERO_SHOT, CEILING = "zero_shot", "true_groups"
_TAG = " @ "  # before the label of one of several configurations
MULTI_MODAL, SINGLE_MODAL = "ivlp+gram", ("coop+gram", "vpt+gram")


def tagged(method: str, tag: str) -> str:
    """Returns the name of one of several configurations of a method; `tag` tells them apart, and may be empty.

    Example:
      >>> tagged("coop", "steps=50")
      'coop @ steps=50'
    """
    return f"{method}{_TAG}{tag}" if tag else method


def split_method(method: str) -> tuple[str, str]:
    """Splits a method into its base, a tuner with its additions, and its role; the base of zero-shot is empty.

    The base keeps the tag of a configuration.

    Example:
      >>> split_method("coop+kgcoop+gram:init_only"), split_method("coop"), split_method("zero_shot:own")
      (('coop+kgcoop', 'init_only'), ('coop', 'tuner'), ('', 'zero_shot:own'))
      >>> split_method("coop+gram @ steps=50")
      ('coop @ steps=50', 'gram')
    """
    name, _, tag = method.partition(_TAG)
    if name.partition(":")[0] == ZERO_SHOT:
        return "", name
    base, plus, variant = name.partition("+gram")
    return tagged(base, tag), (variant.removeprefix(":") or "gram") if plus else "tuner"


def label(method: str) -> str:
    """Returns the display name of a method.

    Args:
      method: its name in rows.

    Example:
      >>> label("coop+kgcoop:4+gram:init_only"), label("zero_shot:own")
      ('CoOp + KgCoOp (weight 4) + GRAM, initialization only', 'zero-shot, own template')
      >>> label("coop+gram @ steps=50")
      'CoOp + GRAM (steps=50)'
    """
    name, _, tag = method.partition(_TAG)
    base, role = split_method(name)
    text = base_label(base) + role_label(role)
    if not base:
        template = name.partition(":")[2]
        text = "zero-shot" + {"": "", "own": ", own template"}.get(template, f", {template}")
    return text + f" ({tag})" * bool(tag)


def base_label(base: str) -> str:
    """Returns the display name of a tuner with its additions."""
    name, _, tag = base.partition(_TAG)
    tuner, *additions = name.split("+")
    tuner, parenthesis, settings = tuner.partition("(")
    names = [(TUNERS | BASELINES).get(tuner, tuner) + f" ({settings}" * bool(parenthesis)]
    for name, _, weight in (addition.partition(":") for addition in additions):
        names.append(ADDITIONS.get(name, name) + f" (weight {weight})" * bool(weight))
    return " + ".join(names) + f" ({tag})" * bool(tag)


def role_label(role: str) -> str:
    """Returns the display name of a role, to be appended to that of a base."""
    return ROLES.get(role, f" + GRAM, {role}")


def ordered(methods: Iterable[str]) -> tuple[str, ...]:
    """Sorts methods for tables and plots: zero-shot first, then by tuner, additions and role; ceilings last."""
    tuners, roles = list(TUNERS), [*(role for role in ROLES if role != CEILING), "", CEILING]

    def place(method: str) -> tuple:
        method, _, tag = method.partition(_TAG)
        base, role = split_method(method)
        tuner, _, additions = base.partition("+")
        nth = tuners.index(tuner) if tuner in tuners else len(tuners)
        nth_role = roles.index(role if role in roles else "")
        return (bool(base), nth, tuner, additions.count("+"), additions, nth_role, role, tag)

    return tuple(sorted(set(methods), key=place))


def tuner_of(method: str, among: Collection[str] = ()) -> str | None:
    """Returns the same method without GRAM, with which a variant of GRAM is compared; None for all other methods.

    Of a configuration of its own, it is the tuner of that configuration or, if only that is `among` the methods, the
    tuner that all configurations share.
    """
    base, role = split_method(method)
    if not base or role == "tuner":
        return None
    plain = base.partition(_TAG)[0]
    return plain if base not in among and plain in among else base


def compared_pairs(methods: Sequence[str], against: str | None = None) -> list[tuple[str, str]]:
    """Returns the pairs of methods that a report compares.

    These are every variant of GRAM with its tuner, multi-modal with single-modal GRAM, and every method with `against`.
    """
    pairs = [(method, tuner) for method in methods if (tuner := tuner_of(method, methods))]
    pairs += [(MULTI_MODAL, single) for single in SINGLE_MODAL]
    pairs += [(method, against) for method in methods if against not in (None, method)]
    return list(dict.fromkeys((a, b) for a, b in pairs if a in methods and b in methods))


def default_reference(methods: Iterable[str]) -> str | None:
    """Returns zero-shot, if it is among the methods and none of them is a variant of GRAM; otherwise None.

    Args:
      methods: the names of the methods of a table.
    """
    methods = set(methods)
    return ZERO_SHOT if ZERO_SHOT in methods and not any(map(tuner_of, methods)) else None
