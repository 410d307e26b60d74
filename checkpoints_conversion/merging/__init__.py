"""Merges of models, streamed: Hugging Face folders and Megatron checkpoints, in any combination."""
