"""Sphinx: the pages in this directory as HTML (`make docs`)."""

from poiesis import __version__

project = "Poiesis"
copyright = "the Poiesis authors"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"Poiesis {release}"
html_static_path = ["_static"]
html_css_files = ["poiesis.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "tango"
pygments_dark_style = "monokai"
