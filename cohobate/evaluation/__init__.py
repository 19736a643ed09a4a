"""Measures of models that several stages take: intervals, timing, memory, forgetting."""
