"""Language models over HTTP: the engine in a process of its own, and the OpenAI API in front of it."""
