"""Celery: how the links of a task reach the roles. Each link is one call of `reconcile` and carries only a task id."""
