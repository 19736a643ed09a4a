"""Makes preference pairs."""
