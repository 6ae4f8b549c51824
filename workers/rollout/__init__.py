"""Generation: the engine protocol and vLLM behind it."""
