"""Makes the initial student."""
