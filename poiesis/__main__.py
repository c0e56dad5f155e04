"""The command `poiesis`, and `python -m poiesis`."""


def main() -> int:
    """Run the command line. Ctrl-C ends it without a traceback, while it is imported too."""
    try:
        from poiesis.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130  # poiesis.cli.exits.Exit.INTERRUPTED, which may not have been imported yet


if __name__ == "__main__":
    raise SystemExit(main())
