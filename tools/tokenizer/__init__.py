"""What a tokenizer costs each language, and its extension by tokens that lower this cost."""
