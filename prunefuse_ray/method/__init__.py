"""The paper: Algorithm 1 as a list of steps, and the networks that a configuration describes.

Kousar, Bhatti, Moon, "PruneFuse", 2026 (arXiv 2603.26138).
"""
