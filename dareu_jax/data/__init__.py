"""Examples labeled with owners: embedded authors, TOFU, arXiv, and the user's JSON Lines.

`sources.base.load_corpus` is the entry point; it returns an `examples.Corpus` for every source.
"""
