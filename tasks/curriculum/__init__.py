"""Difficulty and curriculum."""
