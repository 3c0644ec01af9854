"""A small kit for executors: read staged images, turn label masks into polygons, write format 0.2."""
