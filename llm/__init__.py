"""Language-model servers; llamacpp/ is the engine inside this package."""
