"""Scores of answers: verifiers, metrics, judges, reward models, votes."""
