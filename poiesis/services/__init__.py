"""The use cases: what happens when somebody posts a task, and what happens next. Adapters come as arguments."""
