"""Stand-ins for the ports, held to the same contract suites as the real adapters; for tests of whatever uses a port."""
