"""The teacher, tuned to the task."""
