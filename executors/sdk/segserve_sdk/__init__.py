"""A small kit for executors: read staged images, turn label masks into polygons, write format 0.2.

`contours`, `images` and `output` are imported by name: `from segserve_sdk import contours, images, output`.
"""
