"""The teacher's token distributions on disk."""
