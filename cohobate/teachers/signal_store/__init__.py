"""The signal store: a teacher's distributions on disk, and how they are packed."""
