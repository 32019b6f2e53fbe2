"""Texts of random words, the control of WaffleCLIP."""

from __future__ import annotations

import re

import numpy as np

WAFFLE, WAFFLE_TEXTS = "waffle", 15
_STREAM = 0xBA2C  # keeps the draws apart from other numbers of the same seed
# Words of the control: they say nothing of a class.
_WORDS = re.findall(
    r"\w+",
    """
anchor apple arch basket bell blanket bottle branch brick bridge brush bucket button candle carpet chain chair chalk
circle clock cloud coal coin copper corner cotton crown cup curtain desk dice door drum dust engine fabric feather
fence flame fog fork frame glass glove gravel hammer handle hinge honey hook ink iron jar kettle key knot ladder
lamp leather lid lock map marble mirror nail needle net oil paint paper pebble pencil pepper pillow pipe plank plate
pocket pump ribbon ring rope rubber salt sand scale screw shelf shell silk smoke soap spoon spring stamp steam steel
string sugar table tape thread tile towel tray tube wax wheel whistle wire wool
""",
)


def waffle_texts(count: int, seed: int) -> list[str]:
    """Return templates with random words and random letters, the same for every class.

    Source: WaffleCLIP (arXiv 2306.07282), where the words are in the place of what a language model would say.
    """
    numbers = np.random.default_rng([seed % 2**64, _STREAM])
    texts: list[str] = []
    while len(texts) < count:
        words = " ".join(_WORDS[place] for place in numbers.integers(len(_WORDS), size=2))
        if len(texts) % 2:
            words = "".join(chr(ord("a") + letter) for letter in numbers.integers(26, size=8))
        text = f"A photo of a {{}}, which has {words}."
        texts += [text] * (text not in texts)
    return texts
