"""Tests of images: layers and archives made by hand, and those of other programs."""
