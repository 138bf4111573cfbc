"""Noise by the package `nlpaug`: keyboard, optical character recognition, spelling mistakes of people, split words.

Ma, "NLP Augmentation", 2019.
"""

from edgesafe_jax.guards.makers.base import Ways, engine, seeded


def nlpaug_ways() -> Ways:
    """Returns ways of the package `nlpaug` that need no model.

    Raises:
      MakerError: the package is not installed.
    """
    char, word = engine("nlpaug.augmenter.char", "nlpaug"), engine("nlpaug.augmenter.word", "nlpaug")
    # Words are what stands between spaces; the package's own tokenizer would set apart every punctuation mark.
    text = {"tokenizer": str.split, "reverse_tokenizer": " ".join}
    letters = {**text, "aug_word_p": 0.2, "aug_char_p": 0.15, "min_char": 4}
    augmenters = {
        "keyboard": char.KeyboardAug(**letters, include_special_char=False, include_numeric=False),
        "scanned": char.OcrAug(**text, aug_word_p=0.3, aug_char_p=0.2),
        "swapped": char.RandomCharAug(action="swap", **letters),
        "dropped": char.RandomCharAug(action="delete", **letters),
        "spelling": word.SpellingAug(**text, aug_p=0.2, stopwords_regex=r"^\d"),
        "split": word.SplitAug(**text, aug_p=0.15),
    }
    return {
        name: seeded(f"nlpaug/{name}", lambda text, augmenter=augmenter: augmenter.augment(text)[0])
        for name, augmenter in augmenters.items()
    }
