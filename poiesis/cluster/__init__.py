"""Adapters of the `Cluster` port: `kubernetes`, and `local` for one machine. They do not import each other."""
