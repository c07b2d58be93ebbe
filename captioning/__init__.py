"""Describe images, rewrite the descriptions: plain Python, over a client of a server."""
