if __name__ != "emma.checkpoints_conversion":
    raise ImportError(
        "checkpoints_conversion is imported as emma.checkpoints_conversion; run modules as `python -P -m emma.checkpoints_conversion...`"
    )
