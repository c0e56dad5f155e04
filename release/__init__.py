"""What a release consists of, as far as it goes without a network: `.ci/release` runs it, docs/releasing.md describes the steps."""
