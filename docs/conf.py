"""Settings of Sphinx: ``make docs`` builds this folder into ``docs/_build``, and a warning is an error."""

import importlib
import logging

from taylorseer_fx.version import __version__

logging.disable(logging.WARNING)  # of libraries that are imported for their signatures
importlib.import_module("taylorseer_fx.acceleration")
logging.disable(logging.NOTSET)

project = "taylorseer_fx"
author = "the taylorseer_fx authors"
copyright = author  # noqa: A001
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["tables.css"]
html_title = f"taylorseer_fx {__version__}"
html_copy_source = False
html_show_copyright = False
