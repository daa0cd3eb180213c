"""Danlu (丹炉): tune an open LLM into a reasoning specialist and prove that it got better."""

__version__ = "0.1.0"
