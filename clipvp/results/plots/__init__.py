"""Pictures of prompts, mappings and training: plain data in, a matplotlib ``Figure`` out.

They do not use pyplot or its global state. matplotlib is imported when the first picture is made.
"""

from .base import save_figure
from .comparison import plot_costs, plot_shots
from .counts import plot_confusion, plot_mapping, plot_templates
from .epochs import plot_curves, plot_moves
from .masks import plot_masks
from .pixels import plot_examples, plot_gallery, plot_prompt
from .queries import plot_queries
from .texts import plot_texts

__all__ = [
    "plot_confusion",
    "plot_costs",
    "plot_curves",
    "plot_examples",
    "plot_gallery",
    "plot_mapping",
    "plot_masks",
    "plot_moves",
    "plot_prompt",
    "plot_queries",
    "plot_shots",
    "plot_templates",
    "plot_texts",
    "save_figure",
]
