"""Prompts and labelled rows, split without leakage."""
