"""Labelled texts: how they are prepared, what a run of them is made of, how it is judged and saved."""
