"""Where targets come from: stored signals or live teachers, one or several, any tokenizer."""
