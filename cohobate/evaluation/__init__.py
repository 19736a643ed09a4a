"""Measurements of models that several stages share: intervals, timing, memory, forgetting."""
