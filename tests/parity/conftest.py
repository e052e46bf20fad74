"""Comparisons with transformers and torch: extra `parity`, left out where it is not installed."""

import os

import pytest

pytest.importorskip("torch", reason="the parity tests need pip install '.[test,parity]'")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
