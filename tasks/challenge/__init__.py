"""Compares champion and challenger on the dev rows."""
