"""The commands of `__main__`, one module each."""
