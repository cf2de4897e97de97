"""Public test utilities, for our tests and for people who write destinations."""
