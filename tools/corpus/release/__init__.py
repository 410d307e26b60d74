"""Release of a corpus: training and validation parquet per language or pair, statistics, card, checksums."""
