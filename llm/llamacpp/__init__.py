"""The embedded engine: llama.cpp inside this package, for machines without a server.

It needs the package `xllamacpp` (extra `embedded`), which only its worker processes import, and
GGUF files (see `library`). Import from the modules: this file imports nothing.
"""
