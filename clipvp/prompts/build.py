"""From a config to a prompt, or to several of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.schema import PromptConfig
from ..registry import PROMPTS
from .base import VisualPrompt
from .several import SeveralPrompts, views_of_texts

if TYPE_CHECKING:
    from ..sources.base import Source


def build_prompt(
    config: PromptConfig, source: Source, empty: str | None = None, seed: int = 0
) -> VisualPrompt:
    """Return the registered prompt that a config names.

    Args:
        config: The prompt.
        source: Gives the canvas and the normalisation.
        empty: Where the task's images are empty, see ``VisualPrompt.fill``.
        seed: Draws a prompt's start, and shares out texts among several prompts.
    """
    make = PROMPTS.get(config.kind).from_config
    if config.views == 1:
        prompt = make(config, source)
    else:
        view_of = views_of_texts(config, source, seed)
        prompt = SeveralPrompts.of(
            [make(config, source) for _ in range(config.views)], view_of, config.view_by
        )
    prompt.draw(seed)
    if empty is not None:
        prompt.fill(empty)
    return prompt
