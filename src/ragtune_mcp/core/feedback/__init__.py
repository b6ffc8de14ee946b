"""Ratings in: ConPort's `UserFeedback`, cleaned and pooled into judgements of (query, document)."""
