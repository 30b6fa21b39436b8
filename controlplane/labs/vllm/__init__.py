"""A real vLLM on this machine's CPU, with a small model of its own: for the sandbox's `local` models."""
