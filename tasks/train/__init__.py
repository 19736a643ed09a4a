"""Phases of training: one file a method."""
