"""Seeded mutations of valid requests, for tests that no request makes the service fail."""
