"""Scores with intervals, fidelity, efficiency, and the report."""
