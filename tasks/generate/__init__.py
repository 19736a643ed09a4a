"""The teacher's answers: backends and the ledger."""
