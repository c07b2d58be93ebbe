"""Clients for language-model servers; llamacpp/ is the engine inside this package."""
