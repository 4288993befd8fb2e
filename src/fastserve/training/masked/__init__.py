"""Texts without labels for an encoder that classifiers start from: prepared, trained on, judged and saved."""
