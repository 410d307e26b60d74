"""Release of a corpus: parquet by language or pair with training and validation files, statistics, card, checksums."""
