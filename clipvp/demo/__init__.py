"""A page in the browser: drop an image, and see what each prompt makes of it. Needs the extra ``demo`` (Gradio)."""

from .app import open_demo

__all__ = ["open_demo"]
