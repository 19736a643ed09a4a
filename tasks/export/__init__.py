"""Writes the student in several forms, each checked against the original."""
