"""Language models as the stages meet them: where from, on disk, their parts, their answers."""
