"""Collects prompts and labelled rows, and splits them without leakage."""
