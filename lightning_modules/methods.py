"""Names of methods: what a run trained, the same on `fit` and on `test`."""

from collections.abc import Mapping


def method_name(parts: Mapping[str, bool]) -> str:
    """The parts that apply, joined by a plus; inference modules trained alone on labels alone are `decoupled`.

    Example:
        >>> method_name({"boosted": True, "self_distillation": True}), method_name({"boosted": False})
        ('boosted+self_distillation', 'decoupled')
    """
    return "+".join(name for name, applies in parts.items() if name and applies) or "decoupled"
