"""Evaluates all models and renders the report."""
