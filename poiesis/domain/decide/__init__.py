"""What to do next about a task: `stages.decide`."""
