"""Text in, token ids out, and back: tokenizers, chat templates, incremental detokenization and stop strings.

Pure functions of their input: no torch, no HTTP, no clock but the one a chat template asks for.
"""
