"""Learning of one subject during a call: frame selection, training, quality measurement, identity checks and saving."""
