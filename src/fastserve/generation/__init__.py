"""How a language model writes: what may be asked of it, how the next token is chosen, and the plain reference loop."""
