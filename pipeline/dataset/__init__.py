"""What is audited: finding the images and their labels, and reading them.

imagefolder   a folder of class folders
manifestfile  a CSV or Parquet file with a path and a label per row
listing       what either of them found
manifest      the run's list of images, in shards
rgb           one file as pixels, or why not
images        a shard of files as the network sees them
sample        the built-in handwriting with planted errors
"""
