if __name__ != "emma.tools":
    raise ImportError("tools is imported as emma.tools; run modules as `python -P -m emma.tools...`")
