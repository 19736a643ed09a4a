"""Orders the training rows by difficulty."""
