"""Sphinx: the pages in this directory as HTML (`make docs`)."""

from poiesis import __version__

project = "Poiesis"
copyright = "the Poiesis authors"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
myst_heading_anchors = 3
