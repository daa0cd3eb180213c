"""Serve a run, a model or a GGUF file at /v1/chat/completions, by servers that exist: vLLM, llama.cpp, transformers.

`engine` says which server runs what, `door` lets answers finish at the end, `serve` holds both together.
"""
