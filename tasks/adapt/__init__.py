"""Tunes the teacher to the task."""
