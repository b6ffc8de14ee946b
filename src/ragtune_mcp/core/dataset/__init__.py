"""Judgements to training data: pairs, hard negatives, synthetic pairs, a leak-free split, and their files."""
