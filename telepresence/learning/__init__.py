"""Learning of one subject during a call: training, frame selection, likeness, identity, saving."""
