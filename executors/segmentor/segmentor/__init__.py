"""From annotated images to a deployed model: prepare, train, evaluate, export, segment, deploy."""
