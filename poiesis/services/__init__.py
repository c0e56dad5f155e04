"""The use cases: what happens when a task is created, and what happens next. Adapters are passed as arguments."""
