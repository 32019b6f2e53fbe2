"""Runs as one HTML file that needs no network: numbers, curves over each other, mappings, pictures, settings."""

from .build import write_page

__all__ = ["write_page"]
