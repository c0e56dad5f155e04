"""The log store: adapters for S3 and a directory, and the follower that fills it while commands run (docs/adr/0013-whole-logs.md)."""
