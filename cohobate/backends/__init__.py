"""Backends: where the answers of a teacher are computed, and the ledger of all answers."""
