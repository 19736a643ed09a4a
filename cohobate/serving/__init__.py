"""Serving a student: OpenAI's API over one checkpoint, for trying it out and for other tools."""
