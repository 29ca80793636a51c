"""Finding good output sequences.

It sees a step function only: no model, no vocabulary, no strings.
"""
