"""The owner classifier, which says whose content a response looks like, and its scores."""
