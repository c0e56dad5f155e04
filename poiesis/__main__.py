"""`python -m poiesis`."""

from poiesis.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
