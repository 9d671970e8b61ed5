"""Methods and policies as people say them."""

METHODS = {
    "backbone": "static models",
    "boosted": "boosted exits",
    "decoupled": "decoupled exits",
    "deep_supervision": "deep supervision",
    "jei_dnn": "JEI-DNN",
    "past_future": "Global Past-Future",
    "quee": "QuEE",
    "self_distillation": "self-distillation",
    "weighted": "L2W-DEN",
    "zero_time_waste": "Zero Time Waste",
}
POLICIES = {
    "max_probability": "maximum probability",
    "per_class": "a threshold per class",
    "stopping": "optimal stopping",
    "stopping_stateless": "optimal stopping without memory",
    "stopping_recall": "optimal stopping with recall",
    "geometric": "geometric exit distribution",
}


def spoken(method: str, policy: str = "") -> str:
    """A method, and the policy if it is not the method's own.

    Example:
        >>> spoken("jei_dnn"), spoken("boosted+self_distillation", "max_probability"), spoken("decoupled", "entropy")
        ('JEI-DNN', 'boosted exits with self-distillation, maximum probability', 'decoupled exits, entropy')
    """
    parts = (METHODS.get(part, part.replace("_", " ")) for part in method.split("+"))
    return ", ".join(filter(None, (" with ".join(parts), POLICIES.get(policy, policy.replace("_", " ")))))
