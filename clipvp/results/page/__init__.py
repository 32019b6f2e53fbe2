"""One run, or several compared, as one HTML file that needs no network."""

from .write import write_page

__all__ = ["write_page"]
