"""Recipes for massively multilingual continual pre-training. The rooms (`emma.recipes`, `emma.tools`, ...) are the folders
beside this one, linked here."""
