"""Recipes for massively multilingual continual pre-training. The rooms (`emma.recipes`, `emma.tools`, ...) are the folders
beside this one, linked here."""

import sys

if sys.version_info < (3, 12):  # noqa: UP036  an older one stops at a line that it cannot parse
    sys.exit(f"error: emma needs Python 3.12 or 3.13, but {sys.executable} is {sys.version.split()[0]}")
