"""The `poiesis` command: one module for each group of subcommands."""
