"""The command line: main.py reads the arguments, every command has a module."""
