"""Translations + references → scores with signatures, and reports. No torch here."""
