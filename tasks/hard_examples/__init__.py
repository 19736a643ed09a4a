"""Selects hard examples for the next round."""
