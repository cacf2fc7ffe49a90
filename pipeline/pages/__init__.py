"""What people look at: the report, the page that asks, the picture that explains one image.

findings     a run, read back a few images at a time
cards        one flagged image, ready to be shown
overlay      points, boxes, masks and heat over a picture
page         what both pages share
report       report.html
review_page  review.html
explain      one image as a PNG
"""
