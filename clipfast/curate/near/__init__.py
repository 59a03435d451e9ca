"""Pictures that are nearly the same: detectors, neighbours, groups, and their page."""
