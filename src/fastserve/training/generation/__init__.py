"""Texts, prompts and conversations for a causal language model: prepared, trained on, judged and saved."""
