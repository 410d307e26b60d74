"""The demo: real text, a small tokenizer and base model, and every stage from raw text to release."""
