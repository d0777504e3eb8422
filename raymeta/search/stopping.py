"""Decides when a search issues no further trials; running trials go on."""

from __future__ import annotations

from raymeta.search.settings import SearchSettings


def stop_rule(settings: SearchSettings, spent_s: float, gain: float | None) -> str:
    """Names the rule that ends a search; empty if none does.

    Args:
        settings: of the search.
        spent_s: seconds that the search has taken, over all sessions.
        gain: the model's latest bound on the remaining gain, in the metric's units; None without
            one.
    """
    budget, least = settings.budget_s, settings.stop_when_gain_below
    if budget is not None and spent_s >= budget:
        return f"budget_s: {budget:g} s were spent"
    if least is not None and gain is not None and gain < least:
        metric = settings.metrics[0]
        return (
            f"stop_when_gain_below: by the model, {metric} has at most {gain:.3g} to gain, which "
            f"is less than {least:g}"
        )
    return ""
