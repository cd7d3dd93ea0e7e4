"""A transport for tests: ranks are threads."""
