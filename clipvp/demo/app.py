"""The page: an image goes in, a card for each prompt comes out. Nothing on it is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..images import ImageError
from ..model import PromptedClassifier
from ..registry import UserError
from ..results.tables import percent
from .look import Look, Shown, load_side_by_side, look
from .space import plain_name

_MOST_CLASSES, _FIRST_CLASSES = 20, 5  # that can be shown, that are at first
_CSS = Path(__file__).with_name("page.css")
_EMPTY = '<p class="empty">Drop an image, or choose one. It stays on the machine that runs this page.</p>'


def open_demo(
    prompts: Sequence[str],
    *,
    host: str | None = None,
    port: int | None = None,
    browser: bool = False,
    block: bool = True,
    **options: Any,
) -> Any:
    """Serve the page of one or several prompts.

    Args:
        prompts: Folders or hub ids; those of one source share it.
        host: Address to listen on; this machine alone when None.
        port: The first free one from 7860 when None.
        browser: Open a browser.
        block: Wait until the process is ended; else return at once.
        options: What ``PromptedClassifier.from_pretrained`` takes.

    Returns:
        The Gradio app.

    Raises:
        UserError: Gradio is not installed, a prompt cannot be loaded, or the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError("clipvp demo needs Gradio; run `pip install 'clipvp[demo]'`") from error
    classifiers = load_side_by_side([str(prompt) for prompt in prompts], **options)
    names, most = _names(prompts), _most_classes(classifiers)
    with gradio.Blocks(title="clipvp", analytics_enabled=False) as app:
        gradio.Markdown(f"## {_title(names)}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                image = gradio.Image(
                    type="filepath", label="image", sources=["upload", "clipboard"], height=300
                )
                top_k = gradio.Slider(1, most, value=min(_FIRST_CLASSES, most), step=1, label="classes shown")
            with gradio.Column(scale=2, min_width=300):
                shown = gradio.HTML(_EMPTY, padding=False)

        def show(path: str | None, count: int) -> str:
            return cards(names, classifiers, path, int(count)) if path else _EMPTY

        for changed in (image.change, top_k.release):
            changed(show, [image, top_k], shown, show_progress="minimal", api_name=False)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            prevent_thread_lock=not block,
            share=False,
            show_error=True,
            theme=gradio.themes.Base(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=_CSS.read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from error
    return app


def cards(names: Sequence[str], classifiers: Sequence[PromptedClassifier], image: Any, top_k: int = 5) -> str:
    """Return the HTML of a card for each prompt, everything in it escaped."""
    try:
        looks = [look(classifier, image, top_k) for classifier in classifiers]
    except ImageError as error:
        return f'<p class="empty">{html.escape(str(error))}</p>'
    found = zip(names, classifiers, looks, strict=True)
    return f'<div class="looks">{"".join(_card(*each) for each in found)}</div>'


def _card(name: str, classifier: PromptedClassifier, found: Look) -> str:
    what = f"prompt {classifier.prompt.kind}, mapping {classifier.mapping.kind}, {classifier.source.name}"
    pictures = "".join(f'<img alt="what the source sees" src="{_data(pixels)}">' for pixels in found.pixels)
    rows = "".join(
        f'<li><div class="class"><span>{html.escape(row.label)}</span><span>{percent(row.score)}</span></div>'
        f'<div class="bar"><div style="width: {100 * row.score:.2f}%"></div></div>{_line("from ", row.carried)}</li>'
        for row in found.classes
    )
    return (
        f'<section class="look"><h3>{html.escape(name)}</h3><p class="what">{html.escape(what)}</p>'
        f'<div class="sees">{pictures}</div><ol>{rows}</ol>{_line("The source itself says ", found.source)}</section>'
    )


def _line(before: str, labels: Sequence[Shown]) -> str:
    if not labels:
        return ""
    text = ", ".join(f"{shown.label} ({percent(shown.score)})" for shown in labels)
    return f'<div class="carried">{html.escape(before + text)}</div>'


def _data(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _names(prompts: Sequence[str]) -> list[str]:
    """Return a short name of each prompt: that of its run, or its hub id."""
    names = [plain_name(prompt) if Path(prompt).expanduser().exists() else str(prompt) for prompt in prompts]
    return names if len(set(names)) == len(names) else [str(prompt) for prompt in prompts]


def _title(names: Sequence[str]) -> str:
    return html.escape(", ".join(names)) if len(names) <= 3 else f"{len(names)} prompts side by side"


def _most_classes(classifiers: Sequence[PromptedClassifier]) -> int:
    return min(_MOST_CLASSES, max(len(classifier.class_names) for classifier in classifiers))
