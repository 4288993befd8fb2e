"""The folder that is a model: saving it, loading it, and answering with it."""
