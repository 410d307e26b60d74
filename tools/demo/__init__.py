"""The demo: real text, a small tokenizer and base model, and the road from one to the other end."""
