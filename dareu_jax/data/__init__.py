"""Owner-labelled examples: embedded authors, TOFU, and a user's own JSON Lines.

`sources.load_corpus` is the way in; it returns an `examples.Corpus` whatever the source.
"""
