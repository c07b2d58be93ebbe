"""The version of this pack, which pyproject.toml and CHANGELOG.md say too."""

__version__ = "0.2.0"
