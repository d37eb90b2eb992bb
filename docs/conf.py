"""Configure the documentation site; CONTRIBUTING says how it is built.

Its source folder is the root of the repository, so that README, CHANGELOG and the pages of other
folders are pages of the site as they are, with their links.
"""

import sys
from pathlib import Path

_DOCS = Path(__file__).parent
sys.path[:0] = [str(_DOCS), str(_DOCS.parent)]

import charm_jax

project = "CHARM-JAX"
author = "the authors of CHARM-JAX"
copyright = author
release = version = charm_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated_parts",
]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "docs/notebooks/*.nb.py",
    "benchmarks/RESULTS.md",
    "data_pipelines/README.md",
    "tests/golden/RECIPE.md",
]
exclude_patterns = [".*", "build", "dist", "data", "runs"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nb_custom_formats = {".nb.py": "generated_parts.notebook"}
nb_execution_mode = "off"  # -D nb_execution_mode=force runs the notebooks and shows what they print
nb_execution_in_temp = True
nb_execution_timeout = 600
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"
highlight_language = "none"
maximum_signature_line_length = 80

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"CHARM-JAX {release}"
html_additional_pages = {"index": "to_start.html"}  # the first page is docs/index
html_copy_source = False
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["site.css"]
