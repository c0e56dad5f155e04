"""Celery: how a task's chain of links reaches the roles. Each link is one call of `reconcile` and carries a task id alone."""
