"""Examples labeled with owners: embedded authors, TOFU, arXiv, and JSON Lines of the user.

`sources.base.load_corpus` is the entry point; it returns an `examples.Corpus` for every source.
"""
