"""What there is: keys, recipes, columns and statuses in words, and what a layer sends. Nothing here is measured.

No module here loads torch, pandas, scipy or matplotlib.
"""
