"""Whose content a response looks like: the owner classifier and its scores."""
