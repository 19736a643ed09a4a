"""Trains one phase."""
