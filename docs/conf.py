"""Sphinx: `make docs` builds the pages of this folder with warnings as errors, offline."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "medform"
author = "the medform authors"
project_copyright = "the medform authors, Apache-2.0"
release = version = installed("medform")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results"]
suppress_warnings = ["myst.xref_missing"]  # pages also link to files of the repository, which are no pages

html_theme = "furo"
html_title = "medform"
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
