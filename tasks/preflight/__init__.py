"""Checks models, phases, memory and licences."""
