"""Data: files of labelled text as usable rows, splits, a quality report, an encoded store, batches. No torch."""
