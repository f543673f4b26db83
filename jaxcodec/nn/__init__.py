"""Numerics: layers, networks, fixed transforms, terms of the loss, measures. Arrays in, arrays out."""
