"""Release folders: weights, tokenizer, card, checksums and the parity report, ready for the Hub."""
