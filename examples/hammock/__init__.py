"""The network of arXiv 1910.09340 beside gradient boosting, on the same real clicks."""
