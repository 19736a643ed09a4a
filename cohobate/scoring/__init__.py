"""What an answer is worth: verifiers, judges, reward models, votes."""
