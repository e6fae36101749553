"""How good samples are: distances between images, between sets of images and between sets of
points.
"""
