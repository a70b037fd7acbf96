"""Whole slides: where on them a model of patches sees tumour."""
