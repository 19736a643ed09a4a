"""Fast paths on a CPU, each beside a plain path that gives the same numbers."""
