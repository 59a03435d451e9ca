"""Samples that are there twice: by the file's bytes, by its pixels, or by pixels and caption."""
