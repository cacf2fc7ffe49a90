"""The audit of a run: from the evidence's rows to flags, issues with their reasons, and a summary.

flags       scores and flags, image by image: audit.parquet
duplicates  copies with other labels, leaks between splits
reasons     why something was flagged, in words
issues      the flagged images, ranked: issues.parquet
shortcuts   classes whose evidence lies in one corner
summary     counts and classes: summary.json
review      whom people are asked about, and what they said
"""
