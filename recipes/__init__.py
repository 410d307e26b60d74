if __name__ != "emma.recipes":
    raise ImportError("recipes is imported as emma.recipes; run modules as `python -P -m emma.recipes...`")
