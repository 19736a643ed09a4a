"""Champion against challenger, on the dev rows."""
